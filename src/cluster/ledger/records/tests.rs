use proptest::prelude::*;

use super::*;

fn head(chain: &[(u64, u64, u64)]) -> Head {
    let chain: Vec<_> =
        chain.iter().map(|(fence, from, to)| Span { fence: Fence(*fence), from: *from, to: *to }).collect();
    let last = chain.last().copied().unwrap_or(Span { fence: Fence(0), from: 0, to: 0 });
    Head {
        format: FORMAT,
        fence: last.fence,
        seq: last.to,
        chain,
        snapshot_bytes: 0,
        delta_bytes: 0,
        early: false,
        released: false,
    }
}

#[test]
fn names_and_digests_are_checked() {
    for good in ["a", "node-1.example_x", &"x".repeat(64)] {
        assert_eq!(good.parse::<NodeId>().unwrap().to_string(), good);
    }
    for bad in ["", "a/b", "a b", "ü", &"x".repeat(65), "a\n"] {
        assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        assert!(serde_json::from_str::<NodeId>(&serde_json::to_string(bad).unwrap()).is_err());
    }
    let digits = "00112233445566778899aabbccddeeff";
    assert_eq!(digits.parse::<UserHash>().unwrap().to_string(), digits);
    for bad in
        ["", "0011", "00112233445566778899AABBCCDDEEFF", "+0112233445566778899aabbccddeeff", &"0".repeat(33)]
    {
        assert!(bad.parse::<UserHash>().is_err(), "{bad}");
    }
    assert_eq!(format!("{:?}", digits.parse::<UserHash>().unwrap()), "001122…");
}

#[test]
fn newer_format_is_refused_and_fields_ignored() {
    let value = |json: &str| Head::decode(json.as_bytes());
    let known = r#"{"format":1,"fence":3,"seq":2,"chain":[{"fence":3,"from":1,"to":2}],"later":{"x":1}}"#;
    assert_eq!(value(known).unwrap().seq, 2);
    assert!(value(r#"{"fence":3,"seq":2,"chain":[{"fence":3,"from":1,"to":2,"later":1}]}"#).is_ok());
    // Whatever else is in it.
    assert_eq!(value(r#"{"format":2,"fence":"three"}"#), Err(RecordError::Newer(2)));
    assert!(NodeInfo::decode(br#"{"address":"https://a:1","later":true}"#).is_ok());
    assert_eq!(NodeInfo::decode(br#"{"format":9,"addresses":[]}"#), Err(RecordError::Newer(9)));
    assert_eq!(Owner::decode(br#"{"node":"a","format":2}"#), Err(RecordError::Newer(2)));
    assert!(matches!(Owner::decode(br#"{"node":"a/secret"}"#), Err(RecordError::Malformed(_))));
    let error = Head::decode(br#"{"fence":"secret"}"#).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("secret"));
}

#[test]
fn chain_with_a_gap_is_refused() {
    for (chain, good) in [
        (&[(5, 1, 1)][..], true),
        (&[(5, 1, 3), (9, 4, 4)], true),
        (&[], false),
        (&[(5, 0, 1)], false),
        (&[(5, 3, 2)], false),
        (&[(5, 1, 3), (9, 5, 5)], false),
        (&[(5, 1, 3), (9, 3, 5)], false),
        (&[(9, 1, 3), (5, 4, 5)], false),
        (&[(5, 1, 3), (5, 4, 5)], false),
        (&[(5, 1, u64::MAX), (6, 0, 1)], false),
    ] {
        let value = encode(&head(chain)).unwrap();
        assert_eq!(Head::decode(&value).is_ok(), good, "{chain:?}");
    }
    let mut other = head(&[(5, 1, 3)]);
    other.seq = 4;
    assert!(Head::decode(&encode(&other).unwrap()).is_err());
    other = head(&[(5, 1, 3)]);
    other.fence = Fence(6);
    assert!(Head::decode(&encode(&other).unwrap()).is_err());
}

#[test]
fn full_chain_asks_for_a_snapshot() {
    let mut now = Head::snapshot(None, Fence(1), 10);
    for fence in 2..=MAX_CHAIN as u64 {
        assert!(!now.is_full(Fence(fence)));
        now = now.delta(Fence(fence), 1).unwrap();
    }
    assert_eq!((now.is_full(Fence(5000)), now.delta(Fence(5000), 1)), (true, None));
    // The last owner may go on.
    assert!(!now.is_full(now.fence) && now.delta(now.fence, 1).is_some());
    assert!(encode(&now).is_ok() && Head::decode(&encode(&now).unwrap()).is_ok());
    let next = Head::snapshot(Some(&now), Fence(5000), 7);
    assert_eq!((next.seq, next.chain.len(), next.snapshot_bytes, next.delta_bytes), (now.seq + 1, 1, 7, 0));
    assert!(next.follows(Some(&now)));
}

#[test]
fn largest_record_fits_a_request() {
    let span = |n: u64| Span { fence: Fence(u64::MAX / 2 + n), from: u64::MAX / 2 + n, to: u64::MAX / 2 + n };
    let chain: Vec<_> = (0..MAX_CHAIN as u64).map(span).collect();
    let last = chain[chain.len() - 1];
    let head = Head {
        format: 1,
        fence: last.fence,
        seq: last.to,
        chain,
        snapshot_bytes: u64::MAX,
        delta_bytes: u64::MAX,
        early: false,
        released: false,
    };
    assert_eq!(Head::decode(&encode(&head).unwrap()), Ok(head));
}

proptest! {
    /// Any run of deltas, snapshots and owners keeps a chain that is read back, without a gap.
    #[test]
    fn every_next_head_follows(steps in prop::collection::vec((any::<bool>(), 0_u64..3, 0_u64..1000), 1..60)) {
        let mut fence = 1;
        let mut now: Option<Head> = None;
        for (snapshot, later, bytes) in steps {
            fence += later;
            let next = match &now {
                Some(head) if !snapshot => head.delta(Fence(fence), bytes).unwrap(),
                before => Head::snapshot(before.as_ref(), Fence(fence), bytes),
            };
            prop_assert!(next.follows(now.as_ref()));
            prop_assert!(!next.follows(Some(&next)));
            prop_assert!(next.contains(Fence(fence), next.seq));
            prop_assert!(!next.contains(Fence(fence), next.seq + 1));
            prop_assert_eq!(Head::decode(&encode(&next).unwrap()), Ok(next.clone()));
            now = Some(next);
        }
    }

    #[test]
    fn any_value_is_read_or_refused(value in prop::collection::vec(any::<u8>(), 0..80), text in ".{0,80}") {
        for value in [value.as_slice(), text.as_bytes()] {
            let _ = (Head::decode(value).is_ok(), NodeInfo::decode(value).is_ok(), Owner::decode(value).is_ok());
        }
    }
}
