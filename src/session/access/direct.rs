//! Without the feature `broker` no child uses one.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;

use super::{Access, Plan, Prepared};
use crate::child::ShimHandle;
use crate::error::StartFailure;

/// There is none.
pub(in crate::session) struct Endpoint(Infallible);

impl Endpoint {
    pub(super) fn prepare(
        _: &Plan,
        _: &Prepared,
        variables: Vec<(OsString, OsString)>,
    ) -> Result<Access, StartFailure> {
        Ok(Access { variables, network: pilotlight_shim::isolation::Network::Open, endpoint: None })
    }

    pub(in crate::session) fn token(&self) -> Option<&str> {
        match self.0 {}
    }

    pub(in crate::session) fn serve(self, _: &mut ShimHandle) -> io::Result<Option<Infallible>> {
        match self.0 {}
    }
}
