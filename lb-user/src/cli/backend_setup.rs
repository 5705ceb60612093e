//! `homing backend-setup`: what a Linux host needs to take what homing forwards. Printed for reading, or run.

use std::io;
use std::net::IpAddr;
use std::process::Command;

use serde::Serialize;

use super::{DONE, FAILED, fail};

pub(super) const EXAMPLES: &str = "Examples:\n  homing backend-setup l2 10.0.0.100            print the commands\n  \
     homing backend-setup gue 10.0.0.100 --apply   run them, as root, on the backend\n  \
     homing backend-setup ipip 10.0.0.100 --undo   print what takes them back";

/// Options of the command.
#[derive(clap::Args)]
pub(super) struct Options {
    /// As in the app's `backends`.
    forward: Forward,
    /// The address that clients connect to: that of the app's `listen`.
    service: IpAddr,
    /// The family of this host's own address in `backends`, for `ipip` and `gue`.
    #[arg(long, value_enum, default_value_t = Family::Ipv4)]
    over: Family,
    /// Run them instead of printing them.
    #[arg(long)]
    apply: bool,
    /// The commands that take them back.
    #[arg(long)]
    undo: bool,
    /// As JSON, an object for each command.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Forward {
    L2,
    Ipip,
    Gue,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Family {
    Ipv4,
    Ipv6,
}

/// A command and why it is needed.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Step {
    /// What it is for, in words.
    why: &'static str,
    /// The program and its arguments, with a space between; none of them has one.
    #[serde(rename = "command")]
    words: String,
}

pub(super) fn run(options: &Options) -> u8 {
    let steps = if options.undo { undo(options) } else { setup(options) };
    for step in &steps {
        let Step { why, words } = step;
        if options.json {
            println!("{}", serde_json::to_string(step).expect("words"));
        } else {
            println!("# {why}\n{words}");
        }
        if !options.apply {
            continue;
        }
        let mut parts = words.split_whitespace();
        let program = parts.next().expect("a command has a program");
        let mut command = Command::new(program);
        if options.json {
            // Some say what they did, and stdout is for objects.
            command.stdout(io::stderr());
        }
        match command.args(parts).status() {
            Ok(status) if status.success() => {}
            Ok(status) => return fail(FAILED, &format!("{words}: {status}; the commands before it were run")),
            Err(error) => return fail(FAILED, &format!("{program} cannot be run: {error}")),
        }
    }
    DONE
}

fn setup(options: &Options) -> Vec<Step> {
    let service = options.service;
    let bits = if service.is_ipv4() { 32 } else { 128 };
    let mut steps = Vec::new();
    let mut step = |why, words: String| steps.push(Step { why, words });
    if service.is_ipv4() {
        step(
            "never answer ARP for the service address: only homing's machine does",
            "sysctl -w net.ipv4.conf.all.arp_ignore=1".into(),
        );
        step("nor announce it", "sysctl -w net.ipv4.conf.all.arp_announce=2".into());
    }
    match tunnel(options) {
        Some(device) => {
            match options.forward {
                Forward::Gue => {
                    let six = if options.over == Family::Ipv6 { "-6 " } else { "" };
                    step("take GUE packets on UDP port 6080", format!("ip {six}fou add port 6080 gue"));
                }
                Forward::Ipip | Forward::L2 => step("packets in IP", module(device)),
            }
            if options.over == Family::Ipv6 && service.is_ipv4() {
                // Linux: net/ipv6/ip6_tunnel.c, `ip6_fb_tnl_dev_init`.
                step(
                    "IPv4 inside, too: of itself the device takes IPv6 alone",
                    format!("ip -6 tunnel change {device} mode any"),
                );
            }
            step("the device that unpacks them; it is there once its module is", format!("ip link set {device} up"));
            if service.is_ipv4() {
                step(
                    "their sources are not reached by way of the tunnel",
                    format!("sysctl -w net.ipv4.conf.{device}.rp_filter=0"),
                );
                step("the stricter of the two settings counts", "sysctl -w net.ipv4.conf.all.rp_filter=0".into());
            }
            step(
                "the service address, to answer from",
                format!("ip address replace {service}/{bits} dev {device}{}", nodad(service)),
            );
        }
        None => step(
            "the service address, to answer from",
            format!("ip address replace {service}/{bits} dev lo{}", nodad(service)),
        ),
    }
    steps
}

fn undo(options: &Options) -> Vec<Step> {
    let service = options.service;
    let bits = if service.is_ipv4() { 32 } else { 128 };
    let device = tunnel(options).unwrap_or("lo");
    let mut steps = vec![Step {
        why: "no service address any more",
        words: format!("ip address del {service}/{bits} dev {device}"),
    }];
    if matches!(options.forward, Forward::Gue) {
        let six = if options.over == Family::Ipv6 { "-6 " } else { "" };
        steps.push(Step { why: "no GUE any more", words: format!("ip {six}fou del port 6080") });
    }
    if device != "lo" {
        steps.push(Step { why: "the device rests", words: format!("ip link set {device} down") });
    }
    steps
}

/// The device that unpacks, which its module makes by itself; none for `l2`.
fn tunnel(options: &Options) -> Option<&'static str> {
    match (options.forward, options.over, options.service.is_ipv4()) {
        (Forward::L2, _, _) => None,
        (_, Family::Ipv4, true) => Some("tunl0"),
        (_, Family::Ipv4, false) => Some("sit0"),
        (_, Family::Ipv6, _) => Some("ip6tnl0"),
    }
}

fn module(device: &str) -> String {
    let module = match device {
        "tunl0" => "ipip",
        "sit0" => "sit",
        _ => "ip6_tunnel",
    };
    format!("modprobe {module}")
}

fn nodad(service: IpAddr) -> &'static str {
    if service.is_ipv6() { " nodad" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(forward: Forward, service: &str, over: Family) -> Vec<String> {
        let service = service.parse().expect("an address");
        let options = Options { forward, service, over, apply: false, undo: false, json: false };
        setup(&options).into_iter().map(|step| step.words).collect()
    }

    #[test]
    fn l2_puts_the_address_on_loopback_and_keeps_quiet_about_it() {
        let words = words(Forward::L2, "10.0.0.100", Family::Ipv4);
        assert_eq!(words.last().map(String::as_str), Some("ip address replace 10.0.0.100/32 dev lo"));
        assert!(words.iter().any(|word| word.contains("arp_ignore=1")));
    }

    #[test]
    fn ipv4_inside_of_ipv6_is_taken_by_a_device_that_by_itself_takes_ipv6_alone() {
        let change = "ip -6 tunnel change ip6tnl0 mode any".to_owned();
        for forward in [Forward::Ipip, Forward::Gue] {
            assert!(words(forward, "10.0.0.100", Family::Ipv6).contains(&change));
            assert!(!words(forward, "fd00::100", Family::Ipv6).contains(&change));
            assert!(!words(forward, "10.0.0.100", Family::Ipv4).contains(&change));
        }
    }

    #[test]
    fn gue_unpacks_on_the_device_of_what_is_inside() {
        let inside_v6 = words(Forward::Gue, "fd00::100", Family::Ipv4);
        assert!(inside_v6.contains(&"ip fou add port 6080 gue".to_owned()), "{inside_v6:?}");
        assert!(inside_v6.contains(&"ip address replace fd00::100/128 dev sit0 nodad".to_owned()), "{inside_v6:?}");
    }
}
