// SPDX-License-Identifier: GPL-2.0

//! The mode that `vm.anon_vma_lazy` and the parameter `enabled` set.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// Whether VMAs may become lazy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// First faults take the ordinary path.
    Off,
    /// First faults of eligible VMAs are made lazy.
    On,
}

impl From<bool> for Mode {
    fn from(on: bool) -> Self {
        if on {
            Mode::On
        } else {
            Mode::Off
        }
    }
}

impl Mode {
    /// The text that reading the sysctl returns.
    pub(crate) fn text(self) -> &'static [u8] {
        match self {
            Mode::Off => b"0\n",
            Mode::On => b"1\n",
        }
    }

    /// Parses what was written to the sysctl: `0` or `1`, with blanks around it.
    ///
    /// The kernel's own integer handlers would take the first number of `1 1`, and `0x1` for 1; here
    /// everything but the two values is refused.
    ///
    /// Returns [`None`] for anything else, the empty text included.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        match text.trim_ascii() {
            b"0" => Some(Mode::Off),
            b"1" => Some(Mode::On),
            _ => None,
        }
    }
}

/// A [`Mode`] that may be read and set at any time, by anyone.
///
/// No order with other memory is implied: a first fault that runs beside a write to the sysctl may
/// see either value.
pub(crate) struct ModeCell(Atomic<u32>);

impl ModeCell {
    /// Makes a cell that is [`Mode::Off`].
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// The current mode.
    #[inline]
    pub(crate) fn get(&self) -> Mode {
        Mode::from(self.0.load(Relaxed) != 0)
    }

    /// Sets the mode.
    pub(crate) fn set(&self, mode: Mode) {
        self.0.store((mode == Mode::On).into(), Relaxed);
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(anon_vma_lazy_mode))]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_two_values() {
        assert_eq!(Mode::parse(b"0"), Some(Mode::Off));
        assert_eq!(Mode::parse(b"1"), Some(Mode::On));
        assert_eq!(Mode::parse(b" 1\n"), Some(Mode::On));
        assert_eq!(Mode::parse(b"\t0 \n"), Some(Mode::Off));
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            &b""[..],
            b"\n",
            b" ",
            b"2",
            b"-1",
            b"+1",
            b"00",
            b"01",
            b"0x1",
            b"1 1",
            b"1\0",
            b"on",
            b"y",
            b"1,0",
            b"\xff",
        ] {
            assert_eq!(Mode::parse(text), None);
        }
    }

    #[test]
    fn text_parses_back() {
        for mode in [Mode::Off, Mode::On] {
            assert_eq!(Mode::parse(mode.text()), Some(mode));
        }
    }

    #[test]
    fn cell_holds_what_was_set() {
        let cell = ModeCell::new();
        assert_eq!(cell.get(), Mode::Off);
        cell.set(Mode::On);
        assert_eq!(cell.get(), Mode::On);
        cell.set(Mode::Off);
        assert_eq!(cell.get(), Mode::Off);
    }
}
