//! Shiny Server in front of the same app in R, with the one process that it has for an app.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use anyhow::{Context as _, bail};
use homing_tests::machine::{Machine, Network};

use crate::peers::{Peer, free};

/// Debian's package, in a layer above this machine's files: it brings four hundred others, among them a Node.js that may not be this
/// machine's. The sources of the packages are the machine's.
const INSTALL: &str = r#"
set -e
library=$(apt-cache depends shiny-server | sed -n 's/.*Depends: \(libnode.*\)/\1/p')
version=$(apt-cache policy "$library" | sed -n 's/.*Candidate: //p')
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod +x /usr/sbin/policy-rc.d
apt-get install --yes --no-install-recommends --allow-downgrades shiny-server "nodejs=$version"
mkdir -p /srv/apps/shiny-r /srv/apps/shiny-python
cp /run/given/app.R /srv/apps/shiny-r
cp /run/given/page.* /srv/apps/shiny-python
"#;

/// Its machine ends with it.
pub struct ShinyServer {
    pub peer: Peer,
    _machine: Machine,
}

impl ShinyServer {
    pub fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let address = free()?;
        let config = dir.path().join("shiny-server.conf");
        std::fs::write(&config, settings(address))?;
        let apps = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/apps");
        let files = ["shiny-r/app.R", "shiny-python/page.css", "shiny-python/page.js"].map(|file| apps.join(file));
        let given: Vec<_> = [config].into_iter().chain(files).collect();
        let machine = Machine::start(&given, Network::Below).map_err(anyhow::Error::msg)?;
        let installed = machine.run(&["sh", "-c", INSTALL]);
        if !installed.status.success() {
            let said = String::from_utf8_lossy(&installed.stderr);
            bail!("{}", said.lines().last().context("it cannot be installed")?);
        }
        let command = machine.command(&["shiny-server", "/run/given/shiny-server.conf"]);
        let peer = Peer::run("Shiny Server", command, dir, address, || TcpStream::connect(address).is_ok())?;
        Ok(Self { peer, _machine: machine })
    }
}

/// As many sessions as come, and a process that stays.
fn settings(listen: SocketAddr) -> String {
    format!(
        "run_as shiny;\nserver {{ listen {} {};\n location / {{ app_dir /srv/apps/shiny-r; log_dir /tmp; \
         directory_index off; app_idle_timeout 0; simple_scheduler 1000; }} }}\n",
        listen.port(),
        listen.ip()
    )
}
