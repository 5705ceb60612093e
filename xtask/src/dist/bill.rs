//! What is linked into homing: a bill of materials (CycloneDX), and the licences that go with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{VERSION, metadata};
use crate::run::{at_root, output, root};

/// Packages whose code is in the program: its own, and the kernel programs that it carries.
const ROOTS: [&str; 2] = ["homing", "lb-ebpf"];

/// A crate that is linked in.
struct Crate {
    name: String,
    version: String,
    licence: String,
    /// Of the file that the registry serves; absent for the workspace's own.
    sha256: Option<String>,
    folder: PathBuf,
    /// Names and versions of what it uses.
    uses: BTreeSet<(String, String)>,
}

pub struct Bill(Vec<Crate>);

impl Bill {
    pub fn collect(target: &str) -> anyhow::Result<Self> {
        // cargo tree knows what a build of these packages alone links; metadata, which knows the rest, adds up features.
        let mut linked = BTreeSet::new();
        for package in ROOTS {
            let shown = ["tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"];
            let tree = output(at_root("cargo", shown).args(["--target", target, "--package", package]))?;
            linked.extend(tree.lines().filter_map(name_and_version));
        }
        let metadata = metadata(target)?;
        let sums = checksums()?;
        let mut nodes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let uses = list(&node["deps"]).iter().filter_map(|used| used["pkg"].as_str());
            nodes.insert(node["id"].as_str().unwrap_or_default(), uses.collect());
        }
        let key = |package: &Value| (text(&package["name"]), text(&package["version"]));
        let by_id: BTreeMap<&str, _> = list(&metadata["packages"])
            .iter()
            .map(|package| (package["id"].as_str().unwrap_or_default(), key(package)))
            .collect();
        let mut crates = Vec::new();
        for package in list(&metadata["packages"]).iter().filter(|package| linked.contains(&key(package))) {
            let (name, version) = key(package);
            let uses = nodes.get(package["id"].as_str().unwrap_or_default()).into_iter().flatten();
            let uses = uses.filter_map(|id| by_id.get(id)).filter(|used| linked.contains(used)).cloned().collect();
            crates.push(Crate {
                // Old manifests write OR as a slash.
                licence: text(&package["license"]).replace(" / ", " OR ").replace('/', " OR "),
                sha256: sums.get(&(name.clone(), version.clone())).cloned(),
                folder: Path::new(&text(&package["manifest_path"])).parent().map(Path::to_owned).unwrap_or_default(),
                name,
                version,
                uses,
            });
        }
        crates.sort_by(|one, other| (&one.name, &one.version).cmp(&(&other.name, &other.version)));
        Ok(Self(crates))
    }

    /// CycloneDX 1.5, as JSON. Without a serial number and a time: the same sources give the same bill.
    pub fn cyclonedx(&self) -> anyhow::Result<String> {
        let url = |name: &str, version: &str| format!("pkg:cargo/{name}@{version}");
        let component = |found: &Crate, kind: &str| {
            let mut component = json!({
                "type": kind,
                "bom-ref": url(&found.name, &found.version),
                "name": found.name,
                "version": found.version,
                "purl": url(&found.name, &found.version),
                "licenses": [{ "expression": found.licence }],
            });
            if let Some(sum) = &found.sha256 {
                component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
            }
            component
        };
        let uses = |found: &Crate| {
            let on: Vec<String> = found.uses.iter().map(|(name, version)| url(name, version)).collect();
            json!({ "ref": url(&found.name, &found.version), "dependsOn": on })
        };
        let main = self.0.iter().find(|found| found.name == "homing").context("homing is not linked into homing")?;
        let others = self.0.iter().filter(|found| found.name != "homing");
        let bill = json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": { "component": component(main, "application") },
            "components": others.map(|found| component(found, "library")).collect::<Vec<_>>(),
            "dependencies": self.0.iter().map(uses).collect::<Vec<_>>(),
        });
        Ok(serde_json::to_string_pretty(&bill)? + "\n")
    }

    /// The texts that crates bring along, each once, below the names of those that it is of.
    pub fn licences(&self) -> anyhow::Result<String> {
        let mut out = format!(
            "What is linked into homing {VERSION} from elsewhere, beside Rust's own standard library (MIT or Apache-2.0), and its \
             licences.\n\n"
        );
        let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for found in self.0.iter().filter(|found| found.sha256.is_some()) {
            let _ = writeln!(out, "{} {}: {}", found.name, found.version, found.licence);
            for entry in fs::read_dir(&found.folder).with_context(|| found.folder.display().to_string())? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
                let is_licence =
                    ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"].iter().any(|word| name.starts_with(word));
                if is_licence && path.is_file() {
                    let text = String::from_utf8_lossy(&fs::read(&path)?).trim().to_owned();
                    texts.entry(text).or_default().insert(format!("{} {}", found.name, found.version));
                }
            }
        }
        for (text, of) in texts {
            let of: Vec<String> = of.into_iter().collect();
            let _ = write!(out, "\n{}\n{}\n\n{text}\n", "=".repeat(80), of.join(", "));
        }
        Ok(out)
    }
}

/// `tokio v1.2.3 (…)` of `cargo tree`.
fn name_and_version(line: &str) -> Option<(String, String)> {
    let mut words = line.split(' ');
    Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
}

/// What the lock file says of each crate.
fn checksums() -> anyhow::Result<BTreeMap<(String, String), String>> {
    let lock: toml::Table = fs::read_to_string(root().join("Cargo.lock"))?.parse()?;
    let packages = lock.get("package").and_then(toml::Value::as_array).context("Cargo.lock lists no packages")?;
    let word = |package: &toml::Value, key: &str| Some(package.get(key)?.as_str()?.to_owned());
    let of = |package| Some(((word(package, "name")?, word(package, "version")?), word(package, "checksum")?));
    Ok(packages.iter().filter_map(of).collect())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_line_of_cargo_tree_is_read() {
        let found = super::name_and_version("tokio v1.2.3 (*)");
        assert_eq!(found, Some(("tokio".to_owned(), "1.2.3".to_owned())));
        assert_eq!(super::name_and_version(""), None);
    }
}
