//! The files by themselves: fresh, complete, known to the code, accepted by promtool and by Grafana's own types.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use pilotlight::telemetry::metrics::catalogue;

use super::expression::{metric, selectors, unknown};
use super::prometheus;
use super::questions::{DASHBOARDS, all, dashboard, directory, panels, read};
use crate::common::installed::left_out;
use crate::common::program::{Program, place};

/// Metrics that are on no panel, each with its reason. None today.
const ON_NO_PANEL: [(&str, &str); 0] = [];
/// Metrics of the server itself, outside of the catalogue; each is on a panel.
const OF_THE_PROCESS: [&str; 3] =
    ["process_start_time_seconds", "process_cpu_seconds_total", "process_resident_memory_bytes"];
/// An alert is read in other programs than a checkout, so its link is a whole one.
const REPOSITORY: &str = env!("CARGO_PKG_REPOSITORY");
const SERIES_KINDS: [&str; 5] = ["timeseries", "stat", "heatmap", "table", "state-timeline"];

#[test]
fn what_is_written_by_the_script_is_fresh() {
    let checked = Command::new("python3").arg(directory().join("build.py")).arg("--check").output();
    succeeded(&checked.expect("python3"), "build.py --check");
}

#[test]
fn every_panel_says_what_it_shows_in_which_unit() {
    let mut titles = BTreeSet::new();
    for name in DASHBOARDS {
        let board = dashboard(name);
        let variables = board["templating"]["list"].as_array().unwrap();
        let variables: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
        assert_eq!(variables, ["datasource", "job", "instance"]);
        for panel in panels(&board) {
            let title = panel["title"].as_str().unwrap();
            assert!(titles.insert(format!("{name}: {title}")), "{name}: two panels are called {title}");
            assert!(panel["description"].as_str().is_some_and(|text| text.len() > 20), "{name}: {title}");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{name}: {title}");
            assert!(SERIES_KINDS.contains(&panel["type"].as_str().unwrap()), "{name}: {title}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}: {title}");
        }
    }
    for question in all() {
        for needed in ["job=~\"$job\"", "instance=~\"$instance\""] {
            // Alerts of a whole job have no instance.
            let is_exempt = question.expression.contains("ALERTS") && needed.starts_with("instance");
            assert!(question.expression.contains(needed) || is_exempt, "{}: no {needed}", question.place);
        }
    }
}

#[test]
fn no_two_panels_of_a_dashboard_show_the_same() {
    let mut shown = BTreeSet::new();
    for question in all() {
        let (dashboard, _) = question.place.split_once(':').unwrap();
        assert!(shown.insert(format!("{dashboard} {}", question.expression)), "{}", question.place);
    }
}

#[test]
fn nothing_is_asked_that_the_code_does_not_have() {
    for question in all() {
        // Variables are no values.
        let text = question.expression.replace("$job", "").replace("$instance", "");
        assert_eq!(unknown(&text), Vec::<String>::new(), "{}", question.place);
    }
    for file in ["rules.yml", "alerts.yml"] {
        assert_eq!(unknown(&without_comments(&read(file))), Vec::<String>::new(), "{file}");
    }
}

#[test]
fn every_metric_is_on_a_panel_or_left_out_on_purpose() {
    let questions = all();
    let shown: BTreeSet<&str> = questions
        .iter()
        .filter(|question| !question.is_mark)
        .flat_map(|question| selectors(&question.expression))
        .map(|selector| metric(&selector.metric).expect("known").name)
        .collect();
    let omitted: BTreeSet<&str> = ON_NO_PANEL.iter().map(|(name, _)| *name).collect();
    let missing: Vec<_> =
        catalogue().map(|metric| metric.name).filter(|name| !shown.contains(name)).collect();
    assert_eq!(missing, Vec::from_iter(omitted), "on no panel");
    for name in OF_THE_PROCESS {
        assert!(questions.iter().any(|question| question.expression.contains(name)), "{name} is on no panel");
    }
}

#[test]
fn every_alert_says_what_to_do() {
    let (alerts, readme) = (read("alerts.yml"), read("README.md"));
    let mut names: Vec<&str> = Vec::new();
    for block in alerts.split("- alert: ").skip(1) {
        let name = block.lines().next().unwrap();
        names.push(name);
        assert!(
            block.contains("severity: page") != block.contains("severity: ticket"),
            "{name}: its severity"
        );
        for field in ["summary: ", "description: "] {
            assert!(block.contains(field), "{name} has no {field}");
        }
        let runbook =
            format!("runbook_url: {REPOSITORY}/blob/main/dashboards/README.md#{}\n", name.to_lowercase());
        assert!(block.contains(&runbook), "{name} has no {runbook}");
        assert!(readme.contains(&format!("\n### {name}\n")), "README.md does not say what to do for {name}");
        let firing = format!("alertname=\"{name}\"");
        assert!(tested().contains(&firing), "{name} is never seen firing in dashboards/tests");
    }
    let described: Vec<&str> =
        readme.lines().filter_map(|line| line.strip_prefix("### Pilotlight")).collect();
    assert_eq!(described.len(), names.len(), "README.md describes alerts that are not there");
}

#[test]
fn promtool_accepts_rules_configuration_and_tests() {
    let Some(promtool) = prometheus::program("promtool") else { return };
    let run = |arguments: &[&str]| {
        let run = Command::new(&promtool).args(arguments).current_dir(directory()).output();
        succeeded(&run.expect("promtool"), &arguments.join(" "));
    };
    run(&["check", "rules", "--lint=all", "--lint-fatal", "rules.yml", "alerts.yml"]);
    run(&["check", "config", "prometheus.yml"]);
    let tests = test_files();
    let tests: Vec<_> = tests.iter().map(|file| file.to_str().unwrap()).collect();
    assert!(tests.len() >= 3, "{tests:?}");
    run(&[&["test", "rules"], tests.as_slice()].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_accepts_metrics_and_each_is_known() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    site.turn("alice", "hello").await.text();
    let text = site.get_admin("/metrics").await.body;
    for name in
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).filter_map(|line| line.split(' ').next())
    {
        let bare = name.strip_prefix("pilotlight_");
        let is_known = bare.is_some_and(|bare| catalogue().any(|metric| metric.name == bare));
        assert!(is_known || OF_THE_PROCESS.contains(&name), "{name} is in no catalogue");
    }
    let Some(promtool) = prometheus::program("promtool") else { return };
    let mut checking = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    checking.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    succeeded(&checking.wait_with_output().unwrap(), "check metrics");
}

/// Grafana itself is in no package registry that can be counted on; its types are.
#[test]
fn the_dashboards_are_what_grafana_expects() {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/grafana-schema");
    let home = std::env::var_os("PILOTLIGHT_GRAFANA_SCHEMA").map_or(target, PathBuf::from);
    let compiler = home.join("node_modules/.bin/tsc");
    if !compiler.exists() {
        left_out("Grafana's types are not installed (tests/run installs them)");
        return;
    }
    // Beside the packages, for that is where the compiler looks for them.
    let work = tempfile::Builder::new().prefix("check-").tempdir_in(&home).expect("a directory");
    std::fs::write(work.path().join("schema.ts"), include_str!("schema.ts")).unwrap();
    let mut text = "import type { Expected } from './schema';\n".to_owned();
    for name in DASHBOARDS {
        text.push_str(&format!("export const {name}: Expected = {};\n", read(&format!("{name}.json"))));
    }
    let compile = |text: &str| {
        let file = work.path().join("dashboards.ts");
        std::fs::write(&file, text).unwrap();
        let flags = "--noEmit --strict --skipLibCheck --allowImportingTsExtensions --moduleResolution bundler --module esnext \
            --target es2022";
        Command::new(&compiler).args(flags.split(' ')).arg(file).output().expect("tsc")
    };
    succeeded(&compile(&text), "tsc");
    // It can fail: a field that is not there, a value that cannot be.
    for (from, to) in
        [("\"drawStyle\"", "\"drawStile\""), ("\"mode\": \"absolute\"", "\"mode\": \"absolut\"")]
    {
        assert!(!compile(&text.replacen(from, to, 1)).status.success(), "{to} is accepted");
    }
}

fn succeeded(run: &Output, what: &str) {
    let said = [&run.stdout, &run.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat();
    assert!(run.status.success(), "{what}: {}\n{said}", run.status);
}

fn test_files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory().join("tests")).expect("dashboards/tests");
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn tested() -> String {
    test_files().iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

fn without_comments(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n")
}
