//! An app whose page takes a second and then belongs to the process that made it.

use std::net::SocketAddr;
use std::path::Path;

use crate::instance::{Homing, free_address};

/// Four workers of it, kept by cookie; `more` are further lines of its `[[app]]`.
pub fn start(more: &str) -> (Homing, SocketAddr) {
    let listen = free_address();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/slow.py");
    let homing = Homing::start(&format!(
        "[[app]]\nname = \"slow\"\nlisten = [\"{listen}\"]\naffinity = \"cookie\"\n\
         command = [\"python3\", {script:?}, \"{{port}}\"]\nworkers = {{ min = 4, max = 4 }}\n{more}\n"
    ));
    homing.wait_for_workers(0, 4);
    (homing, listen)
}
