//! The dashboard and the rules that homing comes with ask for nothing that it does not tell.

use std::collections::BTreeSet;

use super::{families, names};

/// Words that begin as metrics do, `_bucket` and the like taken off where a histogram has them.
fn asked_for(text: &str) -> BTreeSet<String> {
    let words = text.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_'));
    let histograms = || families::ALL.iter().filter(|family| family.kind == "histogram").map(|family| family.name);
    words
        .filter(|word| word.starts_with("homing_") || word.starts_with("process_"))
        .map(|word| {
            let of =
                |name: &&str| ["_bucket", "_sum", "_count"].iter().any(|part| word.strip_suffix(part) == Some(name));
            histograms().find(of).unwrap_or(word).to_owned()
        })
        .collect()
}

#[test]
fn the_grafana_dashboard_and_the_alert_rules_name_metrics_that_are_there() {
    let names: BTreeSet<String> = names().into_iter().collect();
    for (file, text, least) in [
        ("config/grafana/homing.json", include_str!("../../../config/grafana/homing.json"), 30),
        ("config/prometheus/alerts.yaml", include_str!("../../../config/prometheus/alerts.yaml"), 15),
    ] {
        let asked = asked_for(text);
        let unknown: Vec<_> = asked.difference(&names).collect();
        assert!(unknown.is_empty(), "{file} asks for {unknown:?}");
        assert!(asked.len() >= least, "{file}: {asked:?}");
    }
}

#[test]
fn the_dashboard_is_json_with_a_query_in_each_panel() {
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../../config/grafana/homing.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let queries = panel["targets"].as_array().map_or(0, Vec::len);
        assert!(queries > 0 && panel["title"].as_str().is_some_and(|title| !title.is_empty()), "{panel:#}");
    }
    assert!(panels.len() > 20, "{}", panels.len());
}
