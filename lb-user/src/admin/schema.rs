//! JSON Schemas of all that is printed with `--json`: the files in `docs/schema` are what the types say, and every field says
//! what it is.
//!
//! After a change: `HOMING_WRITE_SCHEMAS=1 cargo test -p homing --lib schema`, and look at the difference before it is
//! committed. A field that goes, or means something else, breaks somebody's script.

use std::path::{Path, PathBuf};

use schemars::schema_for;
use serde_json::Value;

use super::report::{Status, Trace};
use crate::cli::backend_setup::Step;
use crate::cli::check::json::Report;
use crate::cli::logs::LogLine;
use crate::cli::progress::OrderLine;
use crate::live::Line;

fn schemas() -> [(&'static str, Value); 7] {
    [
        ("status", schema_for!(Status).to_value()),
        ("trace", schema_for!(Trace).to_value()),
        ("live", schema_for!(Line).to_value()),
        ("check", schema_for!(Report).to_value()),
        ("order", schema_for!(OrderLine<'_>).to_value()),
        ("logs", schema_for!(LogLine<'_>).to_value()),
        ("backend-setup", schema_for!(Step).to_value()),
    ]
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema").join(format!("{name}.json"))
}

#[test]
fn the_published_schemas_are_what_the_types_say() {
    let writes = std::env::var_os("HOMING_WRITE_SCHEMAS").is_some();
    for (name, schema) in schemas() {
        let text = format!("{}\n", serde_json::to_string_pretty(&schema).expect("a schema is JSON"));
        let file = file(name);
        if writes {
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("it can be made");
            std::fs::write(&file, &text).expect("it can be written");
        }
        let published = std::fs::read_to_string(&file).unwrap_or_default();
        let hint = "HOMING_WRITE_SCHEMAS=1 cargo test -p homing --lib schema writes it anew";
        assert!(published == text, "{} is not what {name} --json prints now; {hint}", file.display());
    }
}

/// Every property below, by its way.
fn properties(schema: &Value, way: &str, found: &mut Vec<(String, Value)>) {
    match schema {
        Value::Object(members) => {
            for (name, below) in members {
                let way = format!("{way}/{name}");
                if name == "properties" {
                    for (name, property) in below.as_object().expect("by name") {
                        found.push((format!("{way}/{name}"), property.clone()));
                    }
                }
                properties(below, &way, found);
            }
        }
        Value::Array(all) => all.iter().for_each(|below| properties(below, way, found)),
        _ => {}
    }
}

#[test]
fn every_field_says_what_it_is() {
    let mut all = Vec::new();
    schemas().iter().for_each(|(name, schema)| properties(schema, name, &mut all));
    assert!(all.len() > 100, "{}", all.len());
    // `kind` of a line is a constant, and so its own description.
    let is_told =
        |(_, property): &&(String, Value)| property.get("description").is_some() || property.get("const").is_some();
    let untold: Vec<_> = all.iter().filter(|property| !is_told(property)).map(|(way, _)| way).collect();
    assert!(untold.is_empty(), "write what these are above the fields: {untold:#?}");
}
