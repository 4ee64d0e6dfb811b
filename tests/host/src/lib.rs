// SPDX-License-Identifier: GPL-2.0

//! Host tests of `rust/pure`: the very files of the module, with their unit tests.

#[cfg(test)]
#[path = "../../../rust/pure/mod.rs"]
mod pure;

#[cfg(test)]
mod model;

#[cfg(test)]
mod protocol;

#[cfg(test)]
mod sequences;

#[cfg(test)]
mod threads {
    use crate::pure::mode::{
        Mode,
        ModeCell, //
    };
    use std::thread;

    /// Every text of up to three bytes: only the two values, with blanks around, are taken.
    #[test]
    fn mode_exhaustively() {
        let blank = |byte: u8| byte.is_ascii_whitespace();
        let mut taken = 0;
        for len in 0..=3_u32 {
            for code in 0..256_u32.pow(len) {
                let bytes = code.to_le_bytes();
                let text = &bytes[..len as usize];
                let digits: Vec<u8> = text.iter().copied().filter(|&b| !blank(b)).collect();
                let wanted = match digits[..] {
                    [b'0'] => Some(Mode::Off),
                    [b'1'] => Some(Mode::On),
                    _ => None,
                };
                assert_eq!(Mode::parse(text), wanted, "{text:?}");
                taken += usize::from(wanted.is_some());
            }
        }
        // One digit of two, and blanks (five kinds) in the places that are left.
        assert_eq!(taken, 2 + 2 * 2 * 5 + 2 * 3 * 25);
    }

    /// A mode that is read while others set it is one of the two.
    #[test]
    fn mode_cell_is_never_torn() {
        static CELL: ModeCell = ModeCell::new();

        thread::scope(|scope| {
            for mode in [Mode::Off, Mode::On] {
                scope.spawn(move || (0..10_000).for_each(|_| CELL.set(mode)));
            }
            for _ in 0..10_000 {
                assert!(matches!(CELL.get(), Mode::Off | Mode::On));
            }
        });
    }
}
