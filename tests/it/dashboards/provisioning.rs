//! What Grafana loads at its start. It ignores keys that it does not know, so each is compared with those that its loader has.

use super::questions::read;

/// Of a data source, with those of Prometheus' own below `jsonData`; `apiVersion: 1`.
const OF_SOURCES: [&str; 9] =
    ["apiVersion", "datasources", "name", "uid", "type", "access", "url", "isDefault", "jsonData"];
const OF_PROMETHEUS: [&str; 2] = ["httpMethod", "timeInterval"];
/// Of a provider of dashboards.
const OF_PROVIDERS: [&str; 8] =
    ["apiVersion", "providers", "name", "folder", "type", "allowUiUpdates", "options", "path"];

/// Keys and values, without comments and whatever they are nested in.
fn pairs(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().map(|line| line.trim_start_matches([' ', '-']).trim_end());
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let pairs = lines.map(|line| line.split_once(':').unwrap_or_else(|| panic!("no pair: {line}")));
    pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

fn value<'a>(pairs: &'a [(String, String)], key: &str) -> &'a str {
    let found = pairs.iter().find(|(name, _)| name == key);
    &found.unwrap_or_else(|| panic!("no {key}")).1
}

fn unknown(pairs: &[(String, String)], known: &[&str]) -> Vec<String> {
    pairs.iter().map(|(key, _)| key.clone()).filter(|key| !known.contains(&key.as_str())).collect()
}

#[test]
fn grafana_knows_every_provisioned_key() {
    let sources = pairs(&read("grafana/provisioning/datasources/prometheus.yml"));
    assert_eq!(unknown(&sources, &[OF_SOURCES.as_slice(), &OF_PROMETHEUS].concat()), Vec::<String>::new());
    for (key, wanted) in
        [("apiVersion", "1"), ("type", "prometheus"), ("access", "proxy"), ("url", "http://127.0.0.1:9090")]
    {
        assert_eq!(value(&sources, key), wanted, "{key}");
    }
    let providers = pairs(&read("grafana/provisioning/dashboards/pilotlight.yml"));
    assert_eq!(unknown(&providers, &OF_PROVIDERS), Vec::<String>::new());
    assert_eq!((value(&providers, "apiVersion"), value(&providers, "type")), ("1", "file"));
    // It can fail.
    assert_eq!(unknown(&pairs("apiVersion: 1\nprovider:\n"), &OF_PROVIDERS), ["provider"]);
}

#[test]
fn provisioning_fits_prometheus_and_the_readme() {
    let sources = pairs(&read("grafana/provisioning/datasources/prometheus.yml"));
    let prometheus = read("prometheus.yml");
    let interval = format!("scrape_interval: {}\n", value(&sources, "timeInterval"));
    assert!(prometheus.contains(&interval), "$__rate_interval is made of another interval");
    let providers = pairs(&read("grafana/provisioning/dashboards/pilotlight.yml"));
    let variable = value(&providers, "path").strip_prefix('$').expect("a variable");
    let readme = read("README.md");
    assert!(readme.contains(&format!("{variable}=$PWD/dashboards ")));
    assert!(readme.contains(&format!("echo {variable}=/usr/share/pilotlight/dashboards >>")));
}
