// SPDX-License-Identifier: GPL-2.0

//! Reports of what cannot be.

/// Counts the report; warns, with a stack trace, the first time that this line is reached.
///
/// The caller goes on in the safest way that is left.
macro_rules! report_once {
    ($($message:tt)*) => {{
        static REPORTED: kernel::sync::atomic::Atomic<i32> =
            kernel::sync::atomic::Atomic::new(0);
        $crate::stats::count($crate::pure::counters::Event::Refused);
        if REPORTED.xchg(1, kernel::sync::atomic::Relaxed) == 0 {
            kernel::pr_err!($($message)*);
            kernel::warn_on!(true);
        }
    }};
}

pub(crate) use report_once;
