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
mod modes {
    use crate::pure::mode::Mode;

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
}
