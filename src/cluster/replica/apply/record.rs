//! What of the files depends on the node, before they go to their place. Blocking.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use super::super::delta::Area;
use super::super::key::UserHash;
use super::super::places::{Place, UserPlaces};
use super::super::state::{ContentHash, Known, Stamp, UserState, edge_of, head, tail};
use super::place::{OTHERS, Stage, directory_in};
use crate::model::ids::{SessionHash, SessionKey, UserId};
use crate::support::atomic_file::{self, Durability};
use crate::support::hex;
use crate::workspace::{DirectoryName, MAX_RECORD_BYTES, open_to_read, read_own, remove_any, sessions_dir};

/// Makes the stage fit this node. Gives what the replica has.
pub(super) fn settle(places: &UserPlaces, stage: &Stage, state: UserState) -> io::Result<UserState> {
    let mut files = state.files;
    let list = stage.records.join(OTHERS).join("list");
    DirBuilder::new().recursive(true).mode(0o700).create(&list)?;
    for session in stage.recorded()? {
        let record = stage.record(&session);
        let is_listed = list.join(session.as_str()).is_file();
        let name = directory_in(&record).filter(|_| is_listed);
        // Without a name it has not begun, or was deleted while the object was made.
        let Some(mut name) = name.filter(|_| is_of_user(places, &record, &session)) else {
            remove_any(&record)?;
            remove_any(&stage.session(&session))?;
            continue;
        };
        if is_anothers(places, &session, &name) {
            name = DirectoryName::random();
            let file = record.join("directory");
            atomic_file::replace(&file, name.as_str().as_bytes(), Durability::Kernel)?;
            files.remove(&Place::new(Area::Record(session.clone()), "directory"));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(stage.session(&session).join("work"))?;
        if set_paths(places, &record.join("session.json"), &name)? {
            // Sent once more, as this node has it.
            files.remove(&Place::new(Area::Record(session.clone()), "session.json"));
        }
        if let Some(known) = log(&record.join("journal"))? {
            files.insert(Place::new(Area::Record(session), "journal"), known);
        }
    }
    // A session without a record must not keep what this node had of it before.
    for session in stage.listed()?.unwrap_or_default() {
        if !stage.record(&session).is_dir() {
            remove_any(&list.join(session.as_str()))?;
        }
    }
    files.retain(|place, _| match &place.area {
        Area::Record(session) | Area::Work(session) => stage.record(session).is_dir(),
        Area::User => true,
    });
    remove_work_without_a_session(stage)?;
    Ok(UserState::taken(files))
}

/// Whether a session is one of this user. The store may have been written by others, and each session of a node has its place by
/// its digest alone. One whose record is broken says nothing, and replaces nothing but the user's own.
fn is_of_user(places: &UserPlaces, record: &Path, session: &SessionHash) -> bool {
    let is_its = match key_in(record) {
        Some(key) => key.hash() == *session && UserHash::of(key.user()) == places.hash(),
        None => {
            let here = places.record(session).symlink_metadata();
            here.is_err() || places.list().join(session.as_str()).is_file()
        }
    };
    if !is_its {
        tracing::error!("a session in the store that is not its user's is left out");
    }
    is_its
}

/// Whether the directory of this name is here, and is not the one of this session.
fn is_anothers(places: &UserPlaces, session: &SessionHash, name: &DirectoryName) -> bool {
    let directory = sessions_dir(places.data_dir()).join(name.as_str());
    directory.symlink_metadata().is_ok() && places.session(session) != Some(directory)
}

/// The name of a session's directory and its paths, which the first release requires in a record. Whether the file has changed.
fn set_paths(places: &UserPlaces, file: &Path, directory: &DirectoryName) -> io::Result<bool> {
    let content = match read_own(file, MAX_RECORD_BYTES) {
        Err(error) if error.is_absent() => return Ok(false),
        content => content.map_err(io::Error::from)?,
    };
    // A broken record stays as it is: it is reported when it is read.
    let Ok(mut record) = serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(&content) else {
        return Ok(false);
    };
    let root = sessions_dir(places.data_dir()).join(directory.as_str());
    let here = [
        ("directory", to_raw_value(directory)?),
        ("work", to_raw_value(&root.join("work"))?),
        ("home", to_raw_value(&root.join("home"))?),
    ];
    let mut is_changed = false;
    for (name, here) in here {
        if let Some(value) = record.get_mut(name) {
            is_changed |= value.get() != here.get();
            *value = here;
        }
    }
    if is_changed {
        atomic_file::replace(file, &serde_json::to_vec_pretty(&record)?, Durability::Kernel)?;
    }
    Ok(is_changed)
}

/// The session that a record names.
pub(super) fn key_in(record: &Path) -> Option<SessionKey> {
    #[derive(Deserialize)]
    struct Named {
        /// In hexadecimal digits.
        user: String,
        conversation: String,
    }
    let content = read_own(&record.join("session.json"), MAX_RECORD_BYTES).ok()?;
    let named: Named = serde_json::from_slice(&content).ok()?;
    let user = UserId::new(hex::decode(&named.user)?).ok()?;
    SessionKey::new(user, &named.conversation).ok()
}

/// A journal as it is here.
fn log(path: &Path) -> io::Result<Option<Known>> {
    let file = match open_to_read(path) {
        Err(error) if error.is_absent() => return Ok(None),
        file => file.map_err(io::Error::from)?,
    };
    let length = file.metadata()?.len();
    let edges = head(&file, length)?.zip(tail(&file, length)?);
    Ok(edges.map(|(head, tail)| {
        let (head, edge) = (ContentHash::of(&head), edge_of(&tail));
        Known::Log { stamp: Stamp::default(), length, head, edge }
    }))
}

fn remove_work_without_a_session(stage: &Stage) -> io::Result<()> {
    for entry in fs::read_dir(&stage.sessions)? {
        let name = entry?.file_name();
        let session = name.to_str().and_then(SessionHash::parse);
        if !session.is_some_and(|session| stage.record(&session).is_dir()) {
            remove_any(&stage.sessions.join(name))?;
        }
    }
    Ok(())
}
