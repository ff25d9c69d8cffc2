use std::os::unix::ffi::OsStringExt as _;

use super::*;

fn words(isolation: &Isolation) -> Vec<(String, OsString)> {
    let mut words = Vec::new();
    isolation.encode(|name, value| words.push((name.to_owned(), value)));
    words
}

fn decoded(words: &[(String, OsString)]) -> Result<Isolation, &'static str> {
    let mut isolation = Isolation::default();
    for (name, value) in words {
        isolation.decode(OsStr::new(name), value).unwrap()?;
    }
    isolation.check().map(|()| isolation)
}

#[test]
fn encoded_isolation_decodes_to_itself() {
    assert!(words(&Isolation::default()).is_empty(), "the default costs nothing on the command line");
    let odd = PathBuf::from(OsString::from_vec(b"/data/\xff --rung\n".to_vec()));
    let mounts = vec![
        Mount::read("/usr"),
        Mount::write("/usr/local"),
        Mount { path: odd.clone(), to: "/tmp".into(), write: true },
        Mount { path: "/opt".into(), to: odd.clone(), write: false },
        Mount::read("/usr"),
    ];
    let networks = [
        Network::Open,
        Network::Ports(vec![]),
        Network::Ports(vec![443]),
        Network::Ports(vec![1, 443, 65_535, 443]),
        Network::Private { port: 1 },
        Network::Private { port: 65_535 },
    ];
    for bits in 0..8_u8 {
        let [landlock, seccomp, namespaces] = [1, 2, 4].map(|bit| bits & bit != 0);
        for network in networks.clone() {
            let isolation = Isolation {
                landlock,
                seccomp,
                namespaces,
                network,
                mounts: if namespaces { mounts.clone() } else { vec![Mount::read("/usr")] },
                hidden: vec!["/etc/shadow".into(), odd.clone()],
            };
            let fits = isolation.check();
            assert_eq!(decoded(&words(&isolation)), fits.map(|()| isolation));
        }
    }
}

#[test]
fn malformed_options_are_refused() {
    for (name, value) in [
        ("--rung", "moat"),
        ("--rung", "uid"),
        ("--rung", ""),
        ("--tcp-ports", "0"),
        ("--tcp-ports", "65536"),
        ("--tcp-ports", "443,"),
        ("--tcp-ports", "http"),
        ("--private-network", "0"),
        ("--private-network", "-1"),
        ("--read-only", "usr"),
        ("--read-only", ""),
        ("--read-write", "/usr/../etc"),
        ("--mount-to", "/usr"),
        ("--hidden", "../etc"),
    ] {
        assert!(decoded(&[(name.into(), value.into())]).is_err(), "accepted {name} {value}");
    }
    assert!(Isolation::default().decode(OsStr::new("--nofile"), OsStr::new("1")).is_none());
}

#[test]
fn requests_that_no_rung_fulfils_are_refused() {
    let all = Isolation { landlock: true, seccomp: true, namespaces: true, ..Isolation::default() };
    let private = Isolation { network: Network::Private { port: 1 }, ..all.clone() };
    let ports = Isolation { network: Network::Ports(vec![1]), ..all.clone() };
    let elsewhere = Mount { path: "/opt".into(), to: "/usr".into(), write: false };
    let moved = Isolation { mounts: vec![elsewhere], ..all };
    for (isolation, needs_landlock, needs_namespaces) in
        [(private, false, true), (ports, true, false), (moved, false, true)]
    {
        assert_eq!(isolation.check(), Ok(()));
        let without = Isolation { landlock: false, ..isolation.clone() };
        assert_eq!(without.check().is_err(), needs_landlock, "{without:?}");
        let without = Isolation { namespaces: false, ..isolation };
        assert_eq!(without.check().is_err(), needs_namespaces, "{without:?}");
    }
}

#[test]
fn rungs_parse_from_their_names() {
    for rung in Rung::ALL {
        assert_eq!(Rung::parse(rung.as_str()), Some(rung));
    }
    assert_eq!(Rung::parse("moat"), None);
}
