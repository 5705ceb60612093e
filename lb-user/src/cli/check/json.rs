//! What `homing check --json` says: the same as the text, for whoever deploys configurations by script.

use std::path::Path;

use serde::Serialize;

use crate::config::{Config, Errors, KernelPath, Problem};
use crate::datapath;

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Report {
    /// The configuration, as it was named.
    pub file: String,
    /// Homing would run with it.
    pub ok: bool,
    /// All that is wrong with it.
    pub errors: Vec<Wrong>,
    /// What the kernel path takes and lacks; none where there are errors, or it is off.
    pub kernel_path: Option<KernelPathReport>,
    /// Whose programs are where homing's go, in words.
    pub notes: Vec<String>,
    /// What each app gets; none where there are errors.
    pub apps: Vec<AppReport>,
}

/// Something that is wrong.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Wrong {
    /// Where that is: a number from 1; none where the file as a whole is meant.
    pub line: Option<usize>,
    /// A number from 1.
    pub column: Option<usize>,
    /// What is wrong and what to do.
    pub message: String,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KernelPathReport {
    /// What this machine, or this user, lacks for it, in words.
    pub missing: Option<String>,
    /// What the kernel sets aside for its tables.
    pub memory_bytes: u64,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AppReport {
    /// As it is configured.
    pub name: String,
    /// Addresses with ports.
    pub listen: Vec<String>,
    /// kernel, http, both or none.
    pub path: String,
    /// Why it gets that path, in words.
    pub why: String,
}

impl Report {
    pub fn of_errors(path: &Path, errors: &Errors) -> Self {
        let wrong = |Problem { place, message, .. }: &Problem| Wrong {
            line: place.as_ref().map(|place| place.line),
            column: place.as_ref().map(|place| place.column),
            message: message.clone(),
        };
        let errors = errors.0.iter().map(wrong).collect();
        let file = path.display().to_string();
        Self { file, ok: false, errors, kernel_path: None, notes: Vec::new(), apps: Vec::new() }
    }

    /// As [`super::render`].
    pub fn of(path: &Path, config: &Config, missing: Option<&str>, others: &[String]) -> Self {
        let wants_kernel_path = config.homing.kernel_path != KernelPath::Off;
        let kernel_path = wants_kernel_path.then(|| KernelPathReport {
            missing: missing.map(str::to_owned),
            memory_bytes: datapath::Sizes::of(config).bytes(),
        });
        let app = |app: &crate::config::App| {
            let (path, why) = super::path_of(app, config.homing.kernel_path, missing);
            let listen = app.listen.iter().map(ToString::to_string).collect();
            AppReport { name: app.name.clone(), listen, path: path.to_owned(), why }
        };
        Self {
            file: path.display().to_string(),
            ok: !(config.homing.kernel_path == KernelPath::Required && missing.is_some()),
            errors: Vec::new(),
            kernel_path,
            notes: others.to_vec(),
            apps: config.apps.iter().map(app).collect(),
        }
    }

    pub fn print(&self) {
        println!("{}", serde_json::to_string_pretty(self).expect("texts and numbers are JSON"));
    }
}
