//! The server's own files of a user. Blocking.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use super::super::delta::{Area, Change, Meta};
use super::super::limits::{EDGE_BYTES, OWN_FILE_BYTES};
use super::super::places::{Place, names};
use super::super::state::{ContentHash, Known, Stamp, edge_of, head, tail};
use super::reading::{Form, Reading};
use super::{Collector, Job, accessed};
use crate::model::ids::SessionHash;
use crate::support::atomic_file::is_temporary_name;
use crate::workspace::beneath::ReadError;
use crate::workspace::open_to_read;

/// Shortest log whose first bytes alone are sent if only they have changed. A shorter one is sent as a whole.
const PATCHED: u64 = 16 * EDGE_BYTES as u64;

/// A file of the server's own.
#[derive(Debug)]
pub(super) struct Own {
    place: Place,
    path: PathBuf,
    is_log: bool,
    /// Bytes when it was looked at.
    bytes: u64,
}

impl Own {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Collector {
    pub(super) fn look_at_record(&mut self, session: &SessionHash) -> io::Result<()> {
        let directory = self.places.record(session);
        let area = Area::Record(session.clone());
        // The journal is last: it must not be behind the record.
        for name in ["directory", "session.json", "progress", "credentials.json", "journal"] {
            if name != "credentials.json" || self.options.credentials {
                self.look_at(Place::new(area.clone(), name), directory.join(name), name == "journal")?;
            }
        }
        Ok(())
    }

    /// Files that belong to no session.
    pub(super) fn look_at_others(&mut self) -> io::Result<()> {
        for (name, path) in self.places.others() {
            if !matches!(name, "responses" | "list") {
                self.look_at(Place::new(Area::User, name), path, false)?;
                continue;
            }
            accessed()?;
            let found = names(&path)?;
            let is_wanted = |file: &&String| match name {
                "list" => SessionHash::parse(file).is_some(),
                _ => !is_temporary_name(file),
            };
            let found: Vec<_> = found.iter().filter(is_wanted).map(|file| format!("{name}/{file}")).collect();
            for place in &found {
                let file = path.join(place.rsplit('/').next().unwrap_or_default());
                self.look_at(Place::new(Area::User, place.as_bytes()), file, false)?;
            }
            self.gone_from(name, &found);
        }
        Ok(())
    }

    /// Files of a directory that the replica has and that are no more there.
    fn gone_from(&mut self, directory: &str, found: &[String]) {
        if self.scope.is_snapshot() {
            return;
        }
        let begin = format!("{directory}/");
        let is_gone = |place: &&Place| {
            place.path.starts_with(begin.as_bytes())
                && found.binary_search_by(|it| it.as_bytes().cmp(&place.path)).is_err()
        };
        let known = self.state.of(&Area::User).map(|(place, _)| place);
        let gone: Vec<_> = known.filter(is_gone).cloned().collect();
        self.jobs.extend(gone.into_iter().map(Job::Removed));
    }

    fn look_at(&mut self, place: Place, path: PathBuf, is_log: bool) -> io::Result<()> {
        let known = self.known(&place);
        match accessed().and_then(|()| path.symlink_metadata()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.jobs.extend(known.map(|_| Job::Removed(place)));
            }
            Ok(found) if found.is_file() && found.len() <= OWN_FILE_BYTES => {
                let stamp = Stamp::of(&found, self.now);
                let is_same = matches!(known, Some(Known::File { stamp: before, .. } | Known::Log { stamp: before, .. })
                    if stamp.is_same(before));
                if !is_same {
                    self.jobs.push_back(Job::Own(Own { place, path, is_log, bytes: found.len() }));
                }
            }
            // Something that was planted, or longer than the server writes.
            Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "no file of the server's own")),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    pub(super) fn own(&mut self, own: Own) -> io::Result<()> {
        let file = match accessed().map_err(ReadError::from).and_then(|()| open_to_read(&own.path)) {
            // Deleted meanwhile, which the next object says.
            Err(error) if error.is_absent() => return Ok(()),
            file => file.map_err(io::Error::from)?,
        };
        let found = file.metadata()?;
        let (length, stamp) = (found.len().min(OWN_FILE_BYTES), Stamp::of(&found, self.now));
        let known = self.known(&own.place);
        if own.is_log {
            return self.log(own.place, file, length, stamp, known);
        }
        if let Some(Known::File { length: before, digest, .. }) = known
            && before == length
            && Reading::hash(&file, length)? == digest
        {
            self.changes.push((own.place, Some(Known::File { stamp, length, digest, mode: 0 })));
            return Ok(());
        }
        self.reading = Some(Reading::whole(own.place, file, length, stamp, Meta::default(), Form::File));
        Ok(())
    }

    /// Sends what was appended to a log, if that is all that has happened.
    fn log(
        &mut self,
        place: Place,
        file: File,
        length: u64,
        stamp: Stamp,
        known: Option<Known>,
    ) -> io::Result<()> {
        if let Some(Known::Log { length: before, head: known_head, edge, .. }) = known
            && before <= length
            && let Some(tail) = tail(&file, before)?
            && edge_of(&tail) == edge
            && let Some(head) = head(&file, before)?
            && (ContentHash::of(&head) == known_head || before >= PATCHED)
        {
            let is_patched = ContentHash::of(&head) != known_head;
            if is_patched {
                // A mark that is kept up to date in its place.
                self.summary.files += 1;
                self.summary.bytes += head.len() as u64;
                self.push(&place, Change::Patch { at: 0, content: &head });
            }
            if before < length {
                self.reading = Some(Reading::appended(place, file, before, (head, tail), length, stamp));
            } else {
                let known = Known::Log { stamp, length, head: ContentHash::of(&head), edge };
                self.changes.push((place, Some(known)));
            }
            return Ok(());
        }
        self.reading = Some(Reading::whole(place, file, length, stamp, Meta::default(), Form::Log));
        Ok(())
    }
}
