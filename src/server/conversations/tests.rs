//! Any order of requests, ends, crashes: one conversation for one request, and only where its child knows exactly what
//! the client tells.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use serde_json::json;

use super::cache::{SPARE_PLACES, State};
use super::*;
use crate::server::dialect::message::Message;

fn user(text: &str) -> Message {
    serde_json::from_value(json!({ "role": "user", "content": text })).unwrap()
}

fn told(history: &[String], asked: &str) -> Told {
    let history: Vec<Message> = history
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let role = if index.is_multiple_of(2) { "user" } else { "assistant" };
            serde_json::from_value(json!({ "role": role, "content": text })).unwrap()
        })
        .collect();
    Told::of(&history, &user(asked), None)
}

/// What happens next. Numbers choose among what there is.
#[derive(Debug, Clone)]
enum Step {
    /// A client goes on with one of the histories it has seen, or begins one.
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

/// What is true of the world, whatever the shelf believes.
#[derive(Default)]
struct World {
    /// What each child knows; one that may know more than anybody can tell has none.
    knows: HashMap<String, Option<Vec<String>>>,
    histories: Vec<Vec<String>>,
    /// Requests that run: their place, what they told, whether they were sent.
    claims: Vec<(Place, Vec<String>, Told)>,
    deleting: Vec<String>,
    by_name: HashSet<String>,
    count: u64,
}

const KEEP: usize = 3;

fn play(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("user");
    let mut shelf = Shelf::new(KEEP, Vec::new());
    let mut world = World { histories: vec![Vec::new()], ..World::default() };
    for step in steps {
        world.count += 1;
        match step {
            Step::Ask { history, word } => {
                let history = world.histories[history % world.histories.len()].clone();
                world.ask(&mut shelf, history, format!("w{word}"))?;
            }
            Step::End { claim, how } if !world.claims.is_empty() => {
                let index = claim % world.claims.len();
                world.end(&mut shelf, index, how);
            }
            Step::Named { claim } if !world.claims.is_empty() => {
                let name = world.claims[claim % world.claims.len()].0.name.clone();
                shelf.remove(&name);
                world.by_name.insert(name);
            }
            Step::Purged { ok } => {
                if let Some(name) = world.deleting.pop() {
                    prop_assert!(world.claims.iter().all(|(place, ..)| place.name != name));
                    if ok {
                        shelf.remove(&name);
                    } else {
                        shelf.still_there(&name);
                    }
                }
            }
            Step::Crash => {
                shelf = Shelf::new(KEEP, file::read(&path));
                world.deleting.clear();
                for (place, ..) in world.claims.drain(..) {
                    // The child may have seen it, or not.
                    world.knows.insert(place.name, None);
                }
            }
            Step::End { .. } | Step::Named { .. } => {}
        }
        world.deleting.extend(shelf.doomed());
        let changed = shelf.take_changed();
        file::write(&path, shelf.places(), &changed);
        world.is_as(&shelf)?;
        let again = Shelf::new(KEEP, file::read(&path));
        for (now, then) in shelf.places().iter().zip(again.places()) {
            let state = |place: &Option<_>| place.as_ref().map(|it: &cache::Conversation| it.state);
            if let Some(State::Free(_)) = state(then) {
                prop_assert_eq!(state(now), state(then), "a crash makes nothing free that is not");
            }
        }
    }
    Ok(())
}

impl World {
    fn ask(&mut self, shelf: &mut Shelf, history: Vec<String>, asked: String) -> Result<(), TestCaseError> {
        let told = told(&history, &asked);
        let name = format!("auto-{}", self.count);
        let Some(place) = shelf.claim(&told, name, self.count) else {
            prop_assert_eq!(shelf.places().len(), KEEP + SPARE_PLACES);
            return Ok(());
        };
        prop_assert!(self.claims.iter().all(|(other, ..)| other.name != place.name), "two requests have it");
        prop_assert!(!self.by_name.contains(&place.name) && !self.deleting.contains(&place.name));
        let knows = self.knows.entry(place.name.clone()).or_insert_with(|| Some(Vec::new()));
        let knows = knows.clone();
        // It knows what it is told, or nothing, and then it is told.
        prop_assert!(
            knows == Some(history.clone()) || knows == Some(Vec::new()),
            "{knows:?} for {history:?}"
        );
        prop_assert_eq!(place.former == Digest::NOTHING, knows == Some(Vec::new()));
        let known = [history, vec![asked]].concat();
        self.claims.push((place, known, told));
        Ok(())
    }

    fn end(&mut self, shelf: &mut Shelf, index: usize, how: End) {
        let (place, mut known, told) = self.claims.swap_remove(index);
        match how {
            End::Refused => shelf.give_back(&place, Some(place.former), None, self.count),
            End::Lost => {
                self.knows.insert(place.name.clone(), None);
                shelf.give_back(&place, None, None, self.count);
            }
            End::Answered(word) => {
                let answer = format!("a{word}");
                let knows = told.asked.then_text(&answer);
                known.push(answer);
                self.knows.insert(place.name.clone(), Some(known.clone()));
                self.histories.push(known);
                shelf.give_back(&place, Some(knows), Some(told.system), self.count);
            }
        }
    }

    fn is_as(&self, shelf: &Shelf) -> Result<(), TestCaseError> {
        let is = |wanted: fn(&State) -> bool| {
            shelf.places().iter().flatten().filter(move |it| wanted(&it.state)).count()
        };
        let claimed = is(|it| matches!(it, State::Claimed));
        let kept = is(|it| matches!(it, State::Free(_) | State::Spent));
        prop_assert!(kept + claimed <= KEEP.max(claimed), "{kept} kept, {claimed} claimed");
        prop_assert!(shelf.places().len() <= KEEP + SPARE_PLACES);
        let held = self.claims.iter().filter(|(place, ..)| !self.by_name.contains(&place.name)).count();
        prop_assert_eq!(claimed, held);
        Ok(())
    }
}

proptest! {
    #[test]
    fn one_conversation_for_one_request_and_only_with_exactly_its_history(steps in steps()) {
        play(steps)?;
    }
}

#[tokio::test]
async fn a_history_is_found_again_by_its_user_alone_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let conversations = || Conversations::new(directory.path().join("c"), 4);
    let (alice, bob) = (UserId::new("alice").unwrap(), UserId::new("bob").unwrap());
    let (first, next) = (told(&[], "u1"), told(&["u1".into(), "a1".into()], "u2"));

    let before = conversations();
    let mut claim = before.claim(&alice, &first).await.unwrap();
    assert!(claim.is_new() && claim.conversation().starts_with(PREFIX));
    let name = claim.conversation().to_owned();
    claim.reached();
    claim.answered("a1");
    assert!(before.claim(&bob, &next).await.unwrap().is_new(), "another user has the same history");
    drop(before);

    let after = conversations();
    let claim = after.claim(&alice, &next).await.unwrap();
    assert_eq!((claim.conversation(), claim.is_new()), (name.as_str(), false));
    let other = after.claim(&alice, &next).await.unwrap();
    assert!(other.is_new() && other.conversation() != name, "while one request has it no other does");
    // Refused before the child saw it: as if nothing had been.
    drop(claim);
    let mut claim = after.claim(&alice, &next).await.unwrap();
    assert_eq!(claim.conversation(), name);
    claim.reached();

    // Killed now, whatever the child has seen: nobody knows.
    let after = conversations();
    assert_ne!(after.claim(&alice, &next).await.unwrap().conversation(), name);
    drop(claim);
}

#[tokio::test]
async fn what_is_used_by_its_name_is_not_matched_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let conversations = Conversations::new(directory.path().to_owned(), 4);
    let alice = UserId::new("alice").unwrap();
    let next = told(&["u1".into(), "a1".into()], "u2");
    for during in [false, true] {
        let mut claim = conversations.claim(&alice, &told(&[], "u1")).await.unwrap();
        let name = claim.conversation().to_owned();
        claim.reached();
        if during {
            conversations.named(&alice, &name).await;
        }
        claim.answered("a1");
        conversations.named(&alice, &name).await;
        assert_ne!(conversations.claim(&alice, &next).await.unwrap().conversation(), name);
    }
}

#[tokio::test]
async fn an_equal_system_prompt_is_preferred_and_another_one_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let conversations = Conversations::new(directory.path().to_owned(), 4);
    let alice = UserId::new("alice").unwrap();
    let with = |history: &[String], asked: &str, system| {
        let Told { before, asked, .. } = told(history, asked);
        Told { before, asked, system: Told::of(&[], &user("x"), Some(system)).system }
    };
    let mut names = Vec::new();
    let claims = [
        conversations.claim(&alice, &with(&[], "u", "brief")).await.unwrap(),
        conversations.claim(&alice, &with(&[], "u", "long")).await.unwrap(),
    ];
    for claim in claims {
        names.push(claim.conversation().to_owned());
        claim.answered("a");
    }
    let next = |system| with(&["u".into(), "a".into()], "v", system);
    let brief = conversations.claim(&alice, &next("brief")).await.unwrap();
    assert_eq!(brief.conversation(), names[0]);
    let other = conversations.claim(&alice, &next("other")).await.unwrap();
    assert_eq!(other.conversation(), names[1]);
}

#[tokio::test]
async fn users_are_bounded_and_come_back_from_their_files() {
    let directory = tempfile::tempdir().unwrap();
    let conversations = Conversations::new(directory.path().to_owned(), 4);
    let name = |number: usize| UserId::new(format!("user {number}")).unwrap();
    let held = conversations.claim(&name(0), &told(&[], "u")).await.unwrap();
    conversations.claim(&name(1), &told(&[], "u")).await.unwrap().answered("a");
    for number in 2..MAX_USERS + 10 {
        conversations.find(&name(number));
    }
    let users = || conversations.users.lock_unpoisoned().shelves.len();
    assert!(users() <= MAX_USERS, "{}", users());
    assert!(conversations.users.lock_unpoisoned().shelves.contains_key(&name(0)), "it is in use");
    assert!(!conversations.users.lock_unpoisoned().shelves.contains_key(&name(1)));
    assert!(!conversations.claim(&name(1), &told(&["u".into(), "a".into()], "v")).await.unwrap().is_new());
    drop(held);
}
