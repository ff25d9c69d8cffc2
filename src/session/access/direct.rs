//! Without the feature `broker` no child uses one.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;

use super::{Access, Env, Plan, Prepared};
use crate::child::ShimHandle;
use crate::error::StartFailure;

/// There is none.
#[derive(Debug)]
pub(in crate::session) struct Endpoint(Infallible);

impl Endpoint {
    pub(super) fn prepare(
        _: &Plan,
        _: &Prepared,
        variables: Vec<(OsString, OsString)>,
    ) -> Result<Access, StartFailure> {
        Ok(super::open(variables))
    }

    pub(super) fn of_spare(_: &Env, variables: Vec<(OsString, OsString)>) -> Result<Access, StartFailure> {
        Ok(super::open(variables))
    }

    pub(super) fn claim(
        self,
        _: &Plan,
        _: &Prepared,
        _: Vec<(OsString, OsString)>,
    ) -> Result<Access, StartFailure> {
        match self.0 {}
    }

    pub(in crate::session) fn token(&self) -> Option<&str> {
        match self.0 {}
    }

    pub(in crate::session) fn serve(self, _: &mut ShimHandle) -> io::Result<Option<Infallible>> {
        match self.0 {}
    }
}
