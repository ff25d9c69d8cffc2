//! A user's data on this node, from its objects.

use std::io;

use tokio_util::sync::CancellationToken;

use super::Replica;
use super::apply::{Apply, ApplyError, set_aside};
use super::chain::{Chain, Since};
use super::fetch::{Fetch, Fetched, Loss, LossCause};
use super::key::UserHash;
use super::places::UserPlaces;
use super::state::UserState;
use crate::model::ids::UserId;
use crate::support::blocking::blocking_long;

/// Why a user cannot be taken over. What this node has of the user stays as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeOverError {
    /// An object cannot be read now.
    #[error(transparent)]
    Lost(#[from] Loss),
    /// The objects hold more than a node takes over.
    #[error("the user has more data than a node takes over")]
    TooMuch,
    /// The data directory cannot be written.
    #[error("the data directory: {0}")]
    Io(#[from] io::Error),
    /// The caller did not want it any more.
    #[error("the user has left meanwhile")]
    GivenUp,
}

/// A user whose files are in their place.
#[derive(Debug)]
pub(crate) struct Taken {
    /// What the next delta is compared with. After a loss nothing is known: the next object is a snapshot, and the chain
    /// begins with it.
    pub(crate) state: UserState,
    pub(crate) since: Since,
    /// What of the chain is lost for good.
    pub(crate) loss: Option<Loss>,
}

/// A user whose files are in a data directory of their own.
#[derive(Debug)]
pub(crate) struct TakenOut {
    /// `None` without a conversation that names it.
    pub(crate) user: Option<UserId>,
    pub(crate) sessions: usize,
    /// Nothing had to be left out because the user is not known.
    pub(crate) is_whole: bool,
    /// What of the chain is lost for good.
    pub(crate) loss: Option<Loss>,
}

/// What a chain has led to.
struct Applied {
    apply: Apply,
    since: Since,
    /// Nothing of it could be read.
    is_nothing: bool,
}

impl Replica {
    /// Replaces what this node has of a user by the objects of a chain. No child of the user may run, and nothing may use the
    /// files. Objects that are lost for good cost what they held and what came later, which may be all; anything else is an
    /// error. Where nothing is left of the chain, what this node has is not replaced but set aside, under the number of the
    /// ownership.
    ///
    /// Ends soon once `stop` is cancelled, with an error or with all files in their place. If this future is dropped instead,
    /// files may change afterwards.
    ///
    /// # Errors
    /// [`TakeOverError`]
    pub(crate) async fn take_over(
        &self,
        user: &UserId,
        fence: u64,
        chain: &Chain,
        stop: &CancellationToken,
    ) -> Result<Taken, TakeOverError> {
        let acquiring = self.taking_over.acquire();
        let permit = stop.run_until_cancelled(acquiring).await.ok_or(TakeOverError::GivenUp)?;
        let _permit = permit.map_err(io::Error::other)?;
        let places = UserPlaces::of(&self.data_dir, user);
        let (Applied { apply, since, is_nothing }, loss) =
            self.apply_what_is_there(&places, chain, stop).await?;
        if stop.is_cancelled() {
            return Err(TakeOverError::GivenUp);
        }
        if is_nothing && let Some(place) = blocking_long(move || set_aside(&places, fence)).await? {
            tracing::error!(place = %place.display(), "nothing of a user is left in the store: files that this node has of it are set aside");
        }
        let state = blocking_long(move || apply.finish()).await?;
        let state = if loss.is_some() { UserState::default() } else { state };
        Ok(Taken { state, since, loss })
    }

    /// As [`Self::take_over`], for a user of whom only the digest is known. The records name the user.
    ///
    /// # Errors
    /// [`TakeOverError`]
    pub(crate) async fn take_out(&self, user: UserHash, chain: &Chain) -> Result<TakenOut, TakeOverError> {
        let _permit = self.taking_over.acquire().await.map_err(io::Error::other)?;
        let unnamed = UserPlaces::unnamed(&self.data_dir, user);
        let unnamed = unnamed.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let (Applied { mut apply, .. }, loss) =
            self.apply_what_is_there(&unnamed, chain, &CancellationToken::new()).await?;
        let data_dir = self.data_dir.clone();
        let (user, is_whole, sessions) = blocking_long(move || {
            let user = apply.user()?;
            let places = user.as_ref().map(|user| UserPlaces::of(&data_dir, user));
            let is_whole = match &places {
                Some(places) => {
                    apply.place_at(places.clone());
                    true
                }
                None => !apply.leave_out_unnamed()?,
            };
            apply.finish()?;
            let sessions = places.map_or(Ok(0), |places| places.sessions().map(|sessions| sessions.len()))?;
            Ok((user, is_whole, sessions))
        })
        .await?;
        Ok(TakenOut { user, sessions, is_whole, loss })
    }

    /// Applies a chain up to the first object that is lost for good.
    async fn apply_what_is_there(
        &self,
        places: &UserPlaces,
        chain: &Chain,
        stop: &CancellationToken,
    ) -> Result<(Applied, Option<Loss>), TakeOverError> {
        let mut loss: Option<Loss> = None;
        loop {
            let wanted = loss.as_ref().map_or_else(|| chain.clone(), |loss| chain.before(loss.from));
            match self.apply_chain(places.clone(), &wanted, stop).await {
                Ok(applied) => return Ok((applied, loss)),
                // What came before the loss is applied by itself. Each round has fewer objects.
                Err(TakeOverError::Lost(found)) if !found.is_temporary() => {
                    let is_nothing = chain.before(found.from).0.is_empty();
                    loss = Some(found);
                    if is_nothing {
                        let places = places.clone();
                        let apply = blocking_long(move || Apply::begin(places)).await?;
                        return Ok((Applied { apply, since: Since::default(), is_nothing }, loss));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn apply_chain(
        &self,
        places: UserPlaces,
        chain: &Chain,
        stop: &CancellationToken,
    ) -> Result<Applied, TakeOverError> {
        let mut fetch: Fetch = self.fetch(places.hash(), chain)?;
        let mut apply = blocking_long(move || Apply::begin(places)).await?;
        let (mut since, mut bytes) = (Since::default(), 0);
        loop {
            let fetched = stop.run_until_cancelled(fetch.next()).await;
            let Some(fetched) = fetched.filter(|_| !stop.is_cancelled()) else {
                // Removed behind this call, which holds what others wait for.
                drop(apply);
                return Err(TakeOverError::GivenUp);
            };
            let Some(fetched) = fetched else { break };
            let Fetched { id, begins, ends, object } = match fetched {
                Ok(fetched) => fetched,
                Err(loss) => return Err(discarded(apply, loss.into()).await),
            };
            bytes += object.len() as u64;
            if ends {
                since = since.with(object.header.kind, std::mem::take(&mut bytes));
            }
            let result;
            (apply, result) = blocking_long(move || {
                let reset = if begins { apply.reset() } else { Ok(()) };
                let result = reset.map_err(ApplyError::from).and_then(|()| apply.object(&object));
                Ok((apply, result))
            })
            .await?;
            let Err(error) = result else { continue };
            let error = match error {
                ApplyError::Unfit => Loss { from: id.seq, cause: LossCause::Unfit }.into(),
                ApplyError::TooMuch => TakeOverError::TooMuch,
                ApplyError::Io(error) => error.into(),
            };
            return Err(discarded(apply, error).await);
        }
        Ok(Applied { apply, since, is_nothing: false })
    }
}

/// Removes what was written for nothing.
async fn discarded(apply: Apply, error: TakeOverError) -> TakeOverError {
    // What stays is removed at the next start; the first error is the one that counts.
    blocking_long(move || apply.discard()).await.err();
    error
}
