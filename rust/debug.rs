// SPDX-License-Identifier: GPL-2.0

//! What the files of `/sys/kernel/debug/anon_vma_lazy/` show.

use crate::{
    pure::counters::Event,
    stats, //
};
use kernel::{
    seq_file::SeqFile,
    seq_print, //
};

/// The text of `counters`: one `name value` line for each event, since the module was loaded.
pub(crate) fn show_counters(out: &SeqFile) {
    for event in Event::ALL {
        seq_print!(out, "{} {}\n", event.name(), stats::sum(event));
    }
}
