//! The files of a cluster: on each host and in each pod the same but for names and addresses, with times that fit.

use std::collections::BTreeSet;
use std::time::Duration;

use pilotlight::Config;

use super::{block, load, number, stop};

/// The configuration of each host, and that of its member of etcd.
const HOSTS: [(&str, &str, &str); 3] = [
    (
        "a",
        include_str!("../../../examples/deploy/three-hosts/a.toml"),
        include_str!("../../../examples/deploy/three-hosts/etcd-a.env"),
    ),
    (
        "b",
        include_str!("../../../examples/deploy/three-hosts/b.toml"),
        include_str!("../../../examples/deploy/three-hosts/etcd-b.env"),
    ),
    (
        "c",
        include_str!("../../../examples/deploy/three-hosts/c.toml"),
        include_str!("../../../examples/deploy/three-hosts/etcd-c.env"),
    ),
];
const OF_HOST: &str = include_str!("../../../examples/deploy/three-hosts/cluster.conf");
const BALANCER: &str = include_str!("../../../examples/deploy/haproxy.cfg");
const PODS: &str = include_str!("../../../examples/deploy/kubernetes/pilotlight.yaml");
const ETCD_PODS: &str = include_str!("../../../examples/deploy/kubernetes/etcd.yaml");

/// Maximum time of requests to etcd and of the last answers that are passed on, as docs/scale.md says.
const LAST: Duration = Duration::from_secs(20);

/// The longest orderly stop of a node: users are handed over, the lease is given back, and what is left stops.
fn leave(config: &Config) -> Duration {
    config.drain_timeout + config.cluster.lease + LAST + stop(config)
}

/// The lines of a text that are neither empty nor comments, without what names the host.
fn shared<'a>(text: &'a str, of_host: &[&str]) -> BTreeSet<&'a str> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.filter(|line| !of_host.iter().any(|key| line.starts_with(key))).collect()
}

/// The values of a key in all hosts' files.
fn values(key: &str, texts: [&'static str; 3]) -> BTreeSet<&'static str> {
    let value = |text: &'static str| text.lines().find_map(|line| line.strip_prefix(key)).expect(key);
    texts.map(value).into()
}

#[test]
fn hosts_differ_in_names_and_addresses_alone() {
    let configs = HOSTS.map(|(name, text, _)| (name, load(text)));
    for (name, config) in &configs {
        assert_eq!(config.cluster.node, *name);
        let listen = config.cluster.listen.expect("an address");
        // Others reach it there.
        assert!(!listen.ip().is_unspecified() && !listen.ip().is_loopback(), "{listen}");
        assert!(config.auth.keys_file.is_some(), "without keys the server would not start there");
        assert!(Duration::from_secs(number(OF_HOST, "TimeoutStopSec=")) > leave(config));
        let address = format!("server {name} {}:{}\n", listen.ip(), config.http.listen.port());
        assert!(BALANCER.contains(&address), "{address}");
    }
    let of_host = ["node = ", "listen = \"10."];
    let lines = HOSTS.map(|(_, text, _)| shared(text, &of_host));
    assert!(lines[0].len() > 8 && lines[0] == lines[1] && lines[1] == lines[2], "{lines:#?}");
}

#[test]
fn members_of_etcd_are_those_that_nodes_ask() {
    let texts = HOSTS.map(|(_, _, env)| env);
    let members = values("ETCD_ADVERTISE_CLIENT_URLS=", texts);
    for (name, text, env) in HOSTS {
        let asked: BTreeSet<_> = load(text).cluster.etcd.into_iter().collect();
        assert_eq!(asked, members.iter().map(|url| (*url).to_owned()).collect());
        let peer =
            env.lines().find_map(|line| line.strip_prefix("ETCD_LISTEN_PEER_URLS=")).expect("an address");
        let initial = values("ETCD_INITIAL_CLUSTER=", texts);
        assert_eq!(initial.len(), 1, "{initial:?}");
        assert!(
            initial.iter().all(|all| all.split(',').any(|one| one == format!("{name}={peer}"))),
            "{initial:?}"
        );
    }
    let of_host = [
        "ETCD_NAME=",
        "ETCD_LISTEN_PEER_URLS=",
        "ETCD_INITIAL_ADVERTISE_PEER_URLS=",
        "ETCD_LISTEN_CLIENT_URLS=",
        "ETCD_ADVERTISE_CLIENT_URLS=",
    ];
    let lines = texts.map(|text| shared(text, &of_host));
    assert!(lines[0].len() > 7 && lines[0] == lines[1] && lines[1] == lines[2], "{lines:#?}");
}

#[test]
fn etcd_has_the_documented_settings_everywhere() {
    let page = include_str!("../../../docs/scale.md");
    for (name, flag) in [
        ("HEARTBEAT_INTERVAL", "heartbeat-interval"),
        ("ELECTION_TIMEOUT", "election-timeout"),
        ("AUTO_COMPACTION_RETENTION", "auto-compaction-retention"),
        ("QUOTA_BACKEND_BYTES", "quota-backend-bytes"),
    ] {
        let documented = number(page, &format!("--{flag}="));
        assert!(documented > 0);
        for (_, _, env) in HOSTS {
            assert_eq!(number(env, &format!("ETCD_{name}=")), documented, "{name}");
        }
        assert_eq!(number(ETCD_PODS, &format!("ETCD_{name}, value:")), documented, "{name}");
    }
    // A lease of two seconds needs it: etcd's shortest one is one and a half election times, in whole seconds.
    assert!(number(page, "--election-timeout=") <= 1333);
}

#[test]
fn pods_of_a_cluster_leave_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    std::fs::write(&file, block(PODS, "pilotlight.toml")).unwrap();
    // What the manifest takes from the name of the pod.
    let variables = [("NODE", "pilotlight-0"), ("ADDRESS", "pilotlight-0.pilotlight-nodes:8482")]
        .map(|(name, value)| (format!("PILOTLIGHT_CLUSTER__{name}"), value.to_owned()));
    for (name, _) in &variables {
        assert!(PODS.contains(&format!("name: {name}")), "{name}");
    }
    let config = Config::load(Some(&file), variables).unwrap();
    assert!(Duration::from_secs(number(PODS, "terminationGracePeriodSeconds:")) > leave(&config));
    let listen = config.cluster.listen.expect("an address");
    for (key, listen) in [
        ("name: http, containerPort:", config.http.listen),
        ("name: admin, containerPort:", config.admin.listen),
        ("name: nodes, containerPort:", listen),
    ] {
        assert_eq!(number(PODS, key), u64::from(listen.port()));
        assert!(listen.ip().is_unspecified(), "requests come from elsewhere");
    }
    let address = format!(".pilotlight-nodes:{}", listen.port());
    assert!(config.cluster.address.as_ref().is_some_and(|of_pod| of_pod.ends_with(&address)));
    // Nodes that are not ready, because they leave, still have users.
    assert!(PODS.contains("publishNotReadyAddresses: true\n"));
    for member in &config.cluster.etcd {
        let (_, host) = member.split_once("http://").expect("an address");
        let (host, _) = host.split_once(':').expect("a port");
        assert!(ETCD_PODS.contains(&format!("http://{host}:2380")), "{host} is no member");
    }
}
