//! Any order of requests, ends and crashes: one conversation per request, and only one whose child has exactly the
//! client's history.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use serde_json::json;

use super::cache::{SPARE_SLOTS, SlotState};
use super::*;
use crate::server::dialect::message::Message;
use crate::support::keyed_gates::Gates;

fn user(text: &str) -> Message {
    serde_json::from_value(json!({ "role": "user", "content": text })).unwrap()
}

fn digest(history: &[String], asked: &str) -> HistoryDigest {
    let history: Vec<Message> = history
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let role = if index.is_multiple_of(2) { "user" } else { "assistant" };
            serde_json::from_value(json!({ "role": role, "content": text })).unwrap()
        })
        .collect();
    HistoryDigest::of(&history, &user(asked), None)
}

/// One step. Numbers select among the candidates.
#[derive(Debug, Clone)]
enum Step {
    /// A client continues one of its histories, or begins one.
    Ask { history: usize, word: u8 },
    /// A request ends, before or after its message was sent, with an answer or without.
    End { claim: usize, how: End },
    /// A client uses a conversation by its name.
    Named { claim: usize },
    /// A deletion has ended, or failed.
    Purged { ok: bool },
    /// This program is killed and started again.
    Crash,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Refused,
    Lost,
    Answered(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = prop_oneof![
        Just(End::Refused),
        Just(End::Lost),
        (0_u8..3).prop_map(End::Answered),
        (0_u8..3).prop_map(End::Answered),
    ];
    let step = prop_oneof![
        6 => (any::<usize>(), 0_u8..3).prop_map(|(history, word)| Step::Ask { history, word }),
        6 => (any::<usize>(), end).prop_map(|(claim, how)| Step::End { claim, how }),
        1 => any::<usize>().prop_map(|claim| Step::Named { claim }),
        2 => any::<bool>().prop_map(|ok| Step::Purged { ok }),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 0..120)
}

/// The actual state, as a model for the cache.
#[derive(Default)]
struct World {
    /// History of each child; `None` where it is unknown.
    knows: HashMap<String, Option<Vec<String>>>,
    histories: Vec<Vec<String>>,
    /// Running requests: slot, history, digest.
    claims: Vec<(Slot, Vec<String>, HistoryDigest)>,
    deleting: Vec<String>,
    by_name: HashSet<String>,
    count: u64,
}

const KEEP: usize = 3;

fn play(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("user");
    let mut cache = ConversationCache::new(KEEP, Vec::new());
    let mut world = World { histories: vec![Vec::new()], ..World::default() };
    for step in steps {
        world.count += 1;
        match step {
            Step::Ask { history, word } => {
                let history = world.histories[history % world.histories.len()].clone();
                world.ask(&mut cache, history, format!("w{word}"))?;
            }
            Step::End { claim, how } if !world.claims.is_empty() => {
                let index = claim % world.claims.len();
                world.end(&mut cache, index, how);
            }
            Step::Named { claim } if !world.claims.is_empty() => {
                let name = world.claims[claim % world.claims.len()].0.name.clone();
                cache.remove(&name);
                world.by_name.insert(name);
            }
            Step::Purged { ok } => {
                if let Some(name) = world.deleting.pop() {
                    prop_assert!(world.claims.iter().all(|(slot, ..)| slot.name != name));
                    if ok {
                        cache.remove(&name);
                    } else {
                        cache.retry_deletion(&name);
                    }
                }
            }
            Step::Crash => {
                cache = ConversationCache::new(KEEP, file::read(&path));
                world.deleting.clear();
                for (slot, ..) in world.claims.drain(..) {
                    // The child may have seen it, or not.
                    world.knows.insert(slot.name, None);
                }
            }
            Step::End { .. } | Step::Named { .. } => {}
        }
        world.deleting.extend(cache.take_deletions());
        file::write(&path, &cache.take_changed());
        world.is_as(&cache)?;
        let again = ConversationCache::new(KEEP, file::read(&path));
        for (now, then) in cache.slots().iter().zip(again.slots()) {
            let state = |slot: &Option<_>| slot.as_ref().map(|it: &cache::Conversation| it.state);
            if let Some(SlotState::Free(_)) = state(then) {
                prop_assert_eq!(state(now), state(then), "a crash makes nothing free that is not");
            }
        }
    }
    Ok(())
}

impl World {
    fn ask(
        &mut self,
        cache: &mut ConversationCache,
        history: Vec<String>,
        asked: String,
    ) -> Result<(), TestCaseError> {
        let digest = digest(&history, &asked);
        let name = format!("auto-{}", self.count);
        let Some(slot) = cache.claim(&digest, name, self.count) else {
            prop_assert_eq!(cache.slots().len(), KEEP + SPARE_SLOTS);
            return Ok(());
        };
        prop_assert!(self.claims.iter().all(|(other, ..)| other.name != slot.name), "two requests have it");
        prop_assert!(!self.by_name.contains(&slot.name) && !self.deleting.contains(&slot.name));
        let knows = self.knows.entry(slot.name.clone()).or_insert_with(|| Some(Vec::new()));
        let knows = knows.clone();
        // The child has exactly the history, or nothing.
        prop_assert!(
            knows == Some(history.clone()) || knows == Some(Vec::new()),
            "{knows:?} for {history:?}"
        );
        prop_assert_eq!(slot.former == Digest::EMPTY, knows == Some(Vec::new()));
        let known = [history, vec![asked]].concat();
        self.claims.push((slot, known, digest));
        Ok(())
    }

    fn end(&mut self, cache: &mut ConversationCache, index: usize, how: End) {
        let (slot, mut known, digest) = self.claims.swap_remove(index);
        match how {
            End::Refused => cache.release(&slot, Some(slot.former), None, self.count),
            End::Lost => {
                self.knows.insert(slot.name.clone(), None);
                cache.release(&slot, None, None, self.count);
            }
            End::Answered(word) => {
                let answer = format!("a{word}");
                let knows = digest.asked.append_text(&answer);
                known.push(answer);
                self.knows.insert(slot.name.clone(), Some(known.clone()));
                self.histories.push(known);
                cache.release(&slot, Some(knows), Some(digest.system), self.count);
            }
        }
    }

    fn is_as(&self, cache: &ConversationCache) -> Result<(), TestCaseError> {
        let is = |wanted: fn(&SlotState) -> bool| {
            cache.slots().iter().flatten().filter(move |it| wanted(&it.state)).count()
        };
        let claimed = is(|it| matches!(it, SlotState::Claimed));
        let kept = is(|it| matches!(it, SlotState::Free(_) | SlotState::Stale));
        prop_assert!(kept + claimed <= KEEP.max(claimed), "{kept} kept, {claimed} claimed");
        prop_assert!(cache.slots().len() <= KEEP + SPARE_SLOTS);
        let held = self.claims.iter().filter(|(slot, ..)| !self.by_name.contains(&slot.name)).count();
        prop_assert_eq!(claimed, held);
        Ok(())
    }
}

proptest! {
    #[test]
    fn claim_is_exclusive_and_history_matches(steps in steps()) {
        play(steps)?;
    }
}

#[tokio::test]
async fn history_matches_for_its_user_after_restart() {
    let directory = tempfile::tempdir().unwrap();
    let conversations = || Conversations::new(directory.path().join("c"), 4);
    let (alice, bob) = (UserId::new("alice").unwrap(), UserId::new("bob").unwrap());
    let (first, next) = (digest(&[], "u1"), digest(&["u1".into(), "a1".into()], "u2"));

    let before = conversations();
    let mut claim = before.claim(&alice, &first).await.unwrap();
    assert!(claim.is_new() && claim.conversation().starts_with(PREFIX));
    let name = claim.conversation().to_owned();
    claim.mark_sent();
    claim.commit("a1", &[]);
    assert!(before.claim(&bob, &next).await.unwrap().is_new(), "another user has the same history");
    before.flush().await;
    drop(before);

    let after = conversations();
    let claim = after.claim(&alice, &next).await.unwrap();
    assert_eq!((claim.conversation(), claim.is_new()), (name.as_str(), false));
    let other = after.claim(&alice, &next).await.unwrap();
    assert!(
        other.is_new() && other.conversation() != name,
        "a claimed conversation matches no other request"
    );
    // Refused before the child received it: released unchanged.
    drop(claim);
    let mut claim = after.claim(&alice, &next).await.unwrap();
    assert_eq!(claim.conversation(), name);
    claim.mark_sent();

    // Killed now: the history of the child is unknown.
    let after = conversations();
    assert_ne!(after.claim(&alice, &next).await.unwrap().conversation(), name);
    drop(claim);
}

#[tokio::test]
async fn named_conversation_matches_no_longer() {
    let directory = tempfile::tempdir().unwrap();
    let conversations = Conversations::new(directory.path().to_owned(), 4);
    let alice = UserId::new("alice").unwrap();
    let inside = Gates::default().enter(&alice).unwrap();
    let next = digest(&["u1".into(), "a1".into()], "u2");
    for during in [false, true] {
        let mut claim = conversations.claim(&alice, &digest(&[], "u1")).await.unwrap();
        let name = claim.conversation().to_owned();
        claim.mark_sent();
        if during {
            conversations.exclude(&inside, &name).await;
        }
        claim.commit("a1", &[]);
        conversations.exclude(&inside, &name).await;
        assert_ne!(conversations.claim(&alice, &next).await.unwrap().conversation(), name);
    }
}

#[tokio::test]
async fn equal_system_prompt_is_preferred() {
    let directory = tempfile::tempdir().unwrap();
    let conversations = Conversations::new(directory.path().to_owned(), 4);
    let alice = UserId::new("alice").unwrap();
    let with = |history: &[String], asked: &str, system| {
        let HistoryDigest { before, asked, .. } = digest(history, asked);
        HistoryDigest { before, asked, system: HistoryDigest::of(&[], &user("x"), Some(system)).system }
    };
    let mut names = Vec::new();
    let claims = [
        conversations.claim(&alice, &with(&[], "u", "brief")).await.unwrap(),
        conversations.claim(&alice, &with(&[], "u", "long")).await.unwrap(),
    ];
    for claim in claims {
        names.push(claim.conversation().to_owned());
        claim.commit("a", &[]);
    }
    let next = |system| with(&["u".into(), "a".into()], "v", system);
    let brief = conversations.claim(&alice, &next("brief")).await.unwrap();
    assert_eq!(brief.conversation(), names[0]);
    let other = conversations.claim(&alice, &next("other")).await.unwrap();
    assert_eq!(other.conversation(), names[1]);
}

#[tokio::test]
async fn users_are_bounded_and_reloaded_from_files() {
    let directory = tempfile::tempdir().unwrap();
    let conversations = Conversations::new(directory.path().to_owned(), 4);
    let name = |number: usize| UserId::new(format!("user {number}")).unwrap();
    let held = conversations.claim(&name(0), &digest(&[], "u")).await.unwrap();
    conversations.claim(&name(1), &digest(&[], "u")).await.unwrap().commit("a", &[]);
    conversations.flush().await;
    // Nothing of the write is left.
    let rests = || Arc::strong_count(conversations.find(&name(1)).get().unwrap()) == 1;
    let resting = async {
        while !rests() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), resting).await.expect("a write goes on");
    for number in 2..MAX_USERS + 10 {
        conversations.find(&name(number));
    }
    let users = || conversations.users.lock_unpoisoned().caches.len();
    assert!(users() <= MAX_USERS, "{}", users());
    assert!(conversations.users.lock_unpoisoned().caches.contains_key(&name(0)), "it is in use");
    assert!(!conversations.users.lock_unpoisoned().caches.contains_key(&name(1)));
    assert!(!conversations.claim(&name(1), &digest(&["u".into(), "a".into()], "v")).await.unwrap().is_new());
    drop(held);
}

/// Who stops after a flush finds on file what was released before.
#[tokio::test]
async fn flush_waits_for_a_write_that_has_begun() {
    let directory = tempfile::tempdir().unwrap();
    let conversations = Conversations::new(directory.path().to_owned(), 4);
    let alice = UserId::new("alice").unwrap();
    conversations.claim(&alice, &digest(&[], "u")).await.unwrap().commit("a", &[]);
    conversations.flush().await;
    let begun = conversations.find(&alice).get().unwrap().writing.clone().lock_owned().await;
    let mut flush = std::pin::pin!(conversations.flush());
    assert!(futures_util::poll!(flush.as_mut()).is_pending());
    drop(begun);
    flush.await;
}

#[tokio::test]
async fn claim_of_a_deleted_user_writes_nothing() {
    let data = tempfile::tempdir().unwrap();
    let directory = data.path().join("conversations");
    let conversations = Conversations::new(directory.clone(), 4);
    let (alice, bob) = (UserId::new("alice").unwrap(), UserId::new("bob").unwrap());
    let history = digest(&[], "hello");
    let claim = conversations.claim(&alice, &history).await.unwrap();
    conversations.claim(&bob, &history).await.unwrap().commit("answer", &[]);
    let files = || std::fs::read_dir(&directory).unwrap().flatten().map(|file| file.path());
    assert_eq!(files().count(), 2);
    conversations.forget(&alice).await;
    std::fs::remove_file(directory.join(user_digest_long(&alice))).unwrap();
    let forgotten = claim.cache.clone();
    claim.commit("late", &[]);
    forgotten.write().await;
    assert_eq!(files().collect::<Vec<_>>(), [directory.join(user_digest_long(&bob))]);
    assert!(conversations.claim(&alice, &history).await.unwrap().is_new());
}

/// Bytes that this thread has had written to files.
fn written_here() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}

/// A disk may hold up who writes: not a thread that serves others.
#[tokio::test]
async fn files_are_written_on_other_threads() {
    let directory = tempfile::tempdir().unwrap();
    let conversations = Conversations::new(directory.path().to_owned(), 4);
    let alice = UserId::new("alice").unwrap();
    let before = written_here();
    let mut claim = conversations.claim(&alice, &digest(&[], "u1")).await.unwrap();
    let file = directory.path().join(user_digest_long(&alice));
    assert!(file.metadata().unwrap().len() > 0, "a claim is on file before its turn begins");
    claim.mark_sent();
    claim.commit("a1", &[]);
    drop(conversations.claim(&alice, &digest(&[], "u2")).await.unwrap());
    conversations.flush().await;
    assert!(written_here() - before < 256, "{}", written_here() - before);
}
