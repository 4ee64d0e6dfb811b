// SPDX-License-Identifier: GPL-2.0

//! Logic without kernel types.
//!
//! The same files are compiled into the module and, by `tests/host`, into a crate that runs on the
//! host. They may use `core` and `kernel::sync::atomic`, for which that crate has a stand-in.

pub(crate) mod counters;
pub(crate) mod family;
pub(crate) mod mode;
pub(crate) mod natural;
pub(crate) mod pid;
pub(crate) mod state;
