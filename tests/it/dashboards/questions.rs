//! What the dashboards ask: every expression of every panel and annotation, out of the JSON that Grafana loads.

use std::path::{Path, PathBuf};

use serde_json::Value;

pub(crate) const DASHBOARDS: [&str; 3] = ["overview", "capacity", "incident"];

/// Expressions that have no answer as long as nothing is wrong, by the title of their panel or annotation.
pub(crate) const EMPTY_IN_PEACE: [&str; 5] =
    ["Alerts", "Crash loops", "First byte of the API, p99", "Restarts of the server", "Versions"];

/// One expression.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// `overview: Error ratio`
    pub(crate) place: String,
    pub(crate) title: String,
    pub(crate) expression: String,
    pub(crate) legend: String,
    /// A mark on the time axis and not a panel.
    pub(crate) is_mark: bool,
}

pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards")
}

pub(crate) fn read(name: &str) -> String {
    let path = directory().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn dashboard(name: &str) -> Value {
    serde_json::from_str(&read(&format!("{name}.json"))).expect("a dashboard is JSON")
}

/// All panels that show something.
pub(crate) fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().expect("panels");
    panels.iter().filter(|panel| panel["type"] != "row").collect()
}

pub(crate) fn all() -> Vec<Question> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let mut all = Vec::new();
    for name in DASHBOARDS {
        let board = dashboard(name);
        let mut add = |title: &Value, target: &Value, is_mark| {
            all.push(Question {
                place: format!("{name}: {}", text(title)),
                title: text(title),
                expression: text(&target["expr"]),
                legend: target["legendFormat"].as_str().unwrap_or_default().to_owned(),
                is_mark,
            });
        };
        for panel in panels(&board) {
            let targets = panel["targets"].as_array().expect("targets");
            assert!(!targets.is_empty(), "{name}: {} asks nothing", panel["title"]);
            targets.iter().for_each(|target| add(&panel["title"], target, false));
        }
        for mark in board["annotations"]["list"].as_array().expect("annotations") {
            add(&mark["name"], &mark["target"], true);
        }
    }
    all
}

/// As Grafana would send it: everything selected.
pub(crate) fn filled_in(expression: &str, interval: &str) -> String {
    let filled = expression.replace("$job", ".*").replace("$instance", ".*");
    let filled = filled.replace("$__rate_interval", interval);
    assert!(!filled.contains('$'), "a variable that is not known here: {filled}");
    filled
}
