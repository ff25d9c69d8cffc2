//! The files in examples/deploy say what the program understands: their configuration loads, their times fit.

#[cfg(feature = "cluster")]
mod cluster;

use std::time::Duration;

use pilotlight::Config;

const UNIT: &str = include_str!("../../examples/deploy/pilotlight.service");
const OF_UNIT: &str = include_str!("../../examples/deploy/pilotlight.toml");
const KUBERNETES: &str = include_str!("../../examples/deploy/kubernetes.yaml");
const CLOUD_RUN: &str = include_str!("../../examples/deploy/cloudrun.yaml");

/// What the connections may still take after the last child has gone.
const CLOSE: Duration = Duration::from_secs(2);

fn load(text: &str) -> Config {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    Config::from_file(&file).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// The number after a word.
fn number(text: &str, word: &str) -> u64 {
    let (_, rest) = text.split_once(word).unwrap_or_else(|| panic!("no {word}"));
    let digits = rest.trim_start_matches([' ', '"']);
    let end = digits.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end).unwrap().parse().unwrap_or_else(|_| panic!("no number after {word}"))
}

/// The longest orderly stop.
fn stop(config: &Config) -> Duration {
    let steps = config.session.stop_interrupt + config.session.stop_eof + config.session.stop_term;
    config.drain_timeout + steps + CLOSE
}

/// The lines of a block scalar, without what they are set in by.
fn block(yaml: &str, key: &str) -> String {
    let (_, rest) = yaml.split_once(&format!("{key}: |\n")).unwrap();
    let inset = rest.len() - rest.trim_start().len();
    let lines = rest.lines().take_while(|line| line.is_empty() || line.starts_with(&" ".repeat(inset)));
    lines.map(|line| format!("{}\n", line.get(inset..).unwrap_or_default())).collect()
}

#[test]
fn the_unit_waits_for_an_orderly_stop() {
    let config = load(OF_UNIT);
    assert!(Duration::from_secs(number(UNIT, "TimeoutStopSec=")) > stop(&config));
    assert_eq!(config.data_dir.to_str(), Some("/var/lib/pilotlight"));
    assert!(UNIT.contains("StateDirectory=pilotlight\n"));
    assert!(
        UNIT.contains("ExecStart=/usr/local/bin/pilotlight serve --config /etc/pilotlight/pilotlight.toml\n")
    );
}

#[test]
fn the_pod_waits_for_an_orderly_stop() {
    let config = load(&block(KUBERNETES, "pilotlight.toml"));
    assert!(Duration::from_secs(number(KUBERNETES, "terminationGracePeriodSeconds:")) > stop(&config));
    for (key, listen) in [
        ("name: http, containerPort:", config.http.listen),
        ("name: admin, containerPort:", config.admin.listen),
    ] {
        assert_eq!(number(KUBERNETES, key), u64::from(listen.port()));
        assert!(listen.ip().is_unspecified(), "a probe comes from elsewhere");
    }
    assert!(config.auth.keys_file.is_some(), "without keys the server would not start there");
}

#[test]
fn the_ten_seconds_of_cloud_run_suffice() {
    let variables = CLOUD_RUN.lines().filter_map(|line| {
        let (_, pair) = line.split_once("{name: PILOTLIGHT_")?;
        let (name, value) = pair.split_once(", value: ")?;
        Some((format!("PILOTLIGHT_{name}"), value.trim_end_matches('}').trim_matches('"').to_owned()))
    });
    let variables: Vec<_> = variables.collect();
    assert!(variables.len() > 5, "the variables are found");
    let config = Config::load(None, variables).unwrap();
    assert!(stop(&config) < Duration::from_secs(10), "{:?}", stop(&config));
    assert_eq!(number(CLOUD_RUN, "containerPort:"), u64::from(config.http.listen.port()));
    assert!(number(CLOUD_RUN, "timeoutSeconds:") >= config.session.turn_timeout.as_secs());
}
