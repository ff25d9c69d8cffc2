//! What of the files depends on the node, before they go to their place. Blocking.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use super::super::delta::Area;
use super::super::places::{Place, UserPlaces};
use super::super::state::{ContentHash, Known, Stamp, UserState, edge_of, head, tail};
use super::place::{OTHERS, Stage, directory_in};
use crate::model::ids::{SessionHash, UserId};
use crate::support::atomic_file::{self, Durability};
use crate::support::hex;
use crate::workspace::{MAX_RECORD_BYTES, open_to_read, read_own, remove_any, sessions_dir};

/// Makes the stage fit this node. Gives what the replica has.
pub(super) fn settle(places: &UserPlaces, stage: &Stage, state: UserState) -> io::Result<UserState> {
    let mut files = state.files;
    let list = stage.records.join(OTHERS).join("list");
    DirBuilder::new().recursive(true).mode(0o700).create(&list)?;
    for session in stage.recorded()? {
        let record = stage.record(&session);
        let is_listed = list.join(session.as_str()).is_file();
        let name = directory_in(&record).filter(|_| is_listed);
        let Some(name) = name else {
            // It has not begun, or was deleted while the object was made.
            remove_any(&record)?;
            remove_any(&stage.session(&session))?;
            continue;
        };
        DirBuilder::new().recursive(true).mode(0o700).create(stage.session(&session).join("work"))?;
        let root = sessions_dir(places.data_dir()).join(name.as_str());
        if set_paths(&record.join("session.json"), &root)? {
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

/// The paths of a session's directories, which the first release requires in a record. Whether the file has changed.
fn set_paths(file: &Path, root: &Path) -> io::Result<bool> {
    let content = match read_own(file, MAX_RECORD_BYTES) {
        Err(error) if error.is_absent() => return Ok(false),
        content => content.map_err(io::Error::from)?,
    };
    // A broken record stays as it is: it is reported when it is read.
    let Ok(mut record) = serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(&content) else {
        return Ok(false);
    };
    let mut is_changed = false;
    for name in ["work", "home"] {
        if let Some(path) = record.get_mut(name) {
            let here = to_raw_value(&root.join(name))?;
            is_changed |= path.get() != here.get();
            *path = here;
        }
    }
    if is_changed {
        atomic_file::replace(file, &serde_json::to_vec_pretty(&record)?, Durability::Kernel)?;
    }
    Ok(is_changed)
}

/// The user that a record names.
pub(super) fn user_in(record: &Path) -> Option<UserId> {
    #[derive(Deserialize)]
    struct Named {
        /// In hexadecimal digits.
        user: String,
    }
    let content = read_own(&record.join("session.json"), MAX_RECORD_BYTES).ok()?;
    let named: Named = serde_json::from_slice(&content).ok()?;
    UserId::new(hex::decode(&named.user)?).ok()
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
