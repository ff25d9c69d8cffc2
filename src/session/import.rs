//! A history that a turn brings with it, and its way into the conversation of a session that has none.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use crate::adapter;
use crate::error::TurnError;
use crate::model::ids::{TurnId, UserId};
use crate::session::env::Env;
use crate::support::{lock::MutexExt, secret_file::FileId};
use crate::turn::{Conversation, FirstLine};

/// What a child is started with, if its conversation turns out to have no context.
#[derive(Debug, Clone)]
pub(crate) struct Offered {
    /// The turn that is to follow.
    pub(crate) turn: TurnId,
    pub(crate) conversation: Arc<Conversation>,
}

/// The line of a turn that is to follow a history: encoded where the child is prepared, off the actor's thread.
#[derive(Debug, Clone)]
pub(crate) struct First {
    pub(crate) turn: TurnId,
    pub(crate) line: FirstLine,
}

/// An import that the CLI has accepted.
#[derive(Debug, Clone)]
pub(crate) struct Imported {
    /// The checkpoint of its last line.
    pub(crate) last: String,
    /// The CLI that it was written for.
    pub(crate) program: Option<FileId>,
}

/// Refusals of different users that make a CLI one that takes no imports. A single user's processes can remove what was
/// written before the CLI reads it, so one user's refusals say nothing about the CLI.
const UNABLE_BY_USERS: usize = 3;
/// Refusals of one user after which this user's histories are no longer written.
const UNABLE_FOR_USER: usize = 3;

/// What is known of the CLI's imports. In memory: a server that is started again tries again.
#[derive(Debug, Default)]
pub(crate) struct Ability(Mutex<Evidence>);

#[derive(Debug, Default)]
struct Evidence {
    /// The program that all of it is about.
    program: Option<FileId>,
    /// An import was taken: refusals have other reasons than the program, for good.
    accepted: bool,
    /// Whose imports were refused; bounded by both limits.
    refused: Vec<UserId>,
}

impl Ability {
    /// Whether an import is worth writing for this user.
    pub(crate) fn is_worth_trying(&self, program: &FileId, user: &UserId) -> bool {
        let evidence = self.evidence();
        evidence.program.as_ref() != Some(program) || !evidence.is_unable_for(user)
    }

    pub(crate) fn accepted(&self, program: FileId) {
        let mut evidence = self.evidence();
        evidence.about(program);
        evidence.accepted = true;
        evidence.refused.clear();
    }

    pub(crate) fn refused(&self, program: FileId, user: &UserId) {
        let mut evidence = self.evidence();
        evidence.about(program);
        if !evidence.accepted && !evidence.is_unable_for(user) {
            evidence.refused.push(user.clone());
        }
    }

    fn evidence(&self) -> MutexGuard<'_, Evidence> {
        self.0.lock_unpoisoned()
    }
}

impl Evidence {
    /// Forgets what was known of another program.
    fn about(&mut self, program: FileId) {
        if self.program.as_ref() != Some(&program) {
            *self = Self { program: Some(program), ..Self::default() };
        }
    }

    fn is_unable_for(&self, user: &UserId) -> bool {
        let own = self.refused.iter().filter(|other| *other == user).count();
        let users: std::collections::HashSet<_> = self.refused.iter().collect();
        !self.accepted && (own >= UNABLE_FOR_USER || users.len() >= UNABLE_BY_USERS)
    }
}

/// The line of the prompt that follows a history, within the limit of all prompts. Blocks for megabytes.
pub(crate) fn first_line(env: &Env, conversation: &Conversation, imported: bool) -> FirstLine {
    let Conversation { history, prompt, commands } = conversation;
    let line = adapter::encode_first_turn(history, imported, prompt, *commands)?;
    line.map(|line| within(line, env.current().session.prompt_limit)).transpose()
}

/// The line, unless it is longer than `limit` bytes.
pub(crate) fn within(line: Vec<u8>, limit: usize) -> Result<Bytes, TurnError> {
    if line.len() > limit {
        return Err(TurnError::PromptTooLarge { bytes: line.len(), limit });
    }
    Ok(line.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    /// One of two files that no test changes.
    fn program(number: usize) -> FileId {
        FileId::at(std::path::Path::new(["Cargo.toml", "Cargo.lock"][number - 1])).unwrap()
    }

    #[test]
    fn refusals_of_one_user_concern_no_other() {
        let ability = Ability::default();
        for round in 0..10 {
            assert_eq!(ability.is_worth_trying(&program(1), &user("mallory")), round < UNABLE_FOR_USER);
            ability.refused(program(1), &user("mallory"));
            assert!(ability.is_worth_trying(&program(1), &user("alice")), "{round}");
        }
        assert_eq!(ability.evidence().refused.len(), UNABLE_FOR_USER, "bounded");
    }

    #[test]
    fn refusals_of_three_users_condemn_a_program() {
        let ability = Ability::default();
        for name in ["a", "b", "c"] {
            assert!(ability.is_worth_trying(&program(1), &user("d")));
            ability.refused(program(1), &user(name));
        }
        assert!(!ability.is_worth_trying(&program(1), &user("d")));
        assert!(ability.is_worth_trying(&program(2), &user("d")), "it was replaced");
    }

    #[test]
    fn acceptance_proves_a_program_for_good() {
        let ability = Ability::default();
        ability.refused(program(1), &user("a"));
        ability.accepted(program(1));
        for name in ["a", "b", "c", "d", "a", "a", "a"] {
            ability.refused(program(1), &user(name));
        }
        assert!(ability.is_worth_trying(&program(1), &user("a")));
        ability.refused(program(2), &user("a"));
        assert!(!ability.evidence().accepted, "another program proves itself");
    }
}
