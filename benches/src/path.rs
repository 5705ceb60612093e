//! `path`: one worker, reached directly, by homing's two paths, and by what others do on layer 4. Over a cable between
//! namespaces, the clients on one thread, the worker on one, and so is whatever stands between them.

mod ways;

use crate::load::{self, Connections, Load};
use crate::peers::cpu_seconds;
use crate::report::{Bar, Case, Rounds};
use ways::{Machines, Way};

/// What one way did in one round.
struct Sample {
    per_second: f64,
    /// Of clients, worker and balancer together, for one of them.
    cpu_us: f64,
}

pub fn run(rounds: Rounds) -> anyhow::Result<Vec<Case>> {
    let (machines, missing) = Machines::start()?;
    for name in missing {
        eprintln!("not installed, so not measured: {name}");
    }
    let ways = machines.ways()?;
    let mut cases = Vec::new();
    for (what, how, unit, each) in [
        ("keep-alive", Connections::Kept, "requests/s", "CPU per request"),
        ("new connections", Connections::New, "conn/s", "CPU per connection"),
    ] {
        let mut samples: Vec<Vec<Sample>> = ways.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds.count {
            // Interleaved: whatever else the machine does, it does to all of them.
            for (way, samples) in ways.iter().zip(&mut samples) {
                samples.push(way.measure(|| sample(way, how, rounds))?);
            }
        }
        let of = |number: usize, value: fn(&Sample) -> f64| samples[number].iter().map(value).collect::<Vec<_>>();
        for (number, way) in ways.iter().enumerate().skip(1) {
            let direct = ways.iter().position(|other| other.name == way.beside).unwrap_or_default();
            let beside = |what: &str, unit, value: fn(&Sample) -> f64| {
                let name = format!("{}, {what}", way.name);
                Case::new(&name, &of(number, value), unit, way.beside, &of(direct, value))
            };
            let bar = way.name.starts_with("kernel path").then_some(Bar::RatioAtLeast(0.97));
            cases.push(beside(what, unit, |sample| sample.per_second).with_bar(bar));
            cases.push(beside(each, "us", |sample| sample.cpu_us).least());
        }
    }
    Ok(cases)
}

fn sample(way: &Way<'_>, how: Connections, rounds: Rounds) -> anyhow::Result<Sample> {
    let used = || -> anyhow::Result<f64> {
        let balancer = way.balancer.map(cpu_seconds).transpose()?;
        Ok(cpu_seconds(way.worker)? + balancer.unwrap_or_default())
    };
    let before = used()?;
    let Load { answered, elapsed, cpu_s } = load::ask(way.clients, way.target, how, rounds.length)?;
    let cpu_s = cpu_s + used()? - before;
    Ok(Sample { per_second: answered as f64 / elapsed.as_secs_f64(), cpu_us: cpu_s * 1e6 / answered as f64 })
}
