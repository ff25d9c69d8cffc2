//! Files that belong to the user, and disks that belong to nobody.

use super::*;
