// SPDX-License-Identifier: GPL-2.0

//! The text that names a process.

/// Parses a process id in decimal digits, with blanks around it.
///
/// Returns [`None`] for anything else: a sign, a number that no `pid_t` holds, the empty text.
pub(crate) fn parse(text: &[u8]) -> Option<i32> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0i32, |value, c| {
        let digit = c.is_ascii_digit().then(|| i32::from(c - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(anon_vma_lazy_pid))]
mod tests {
    use super::*;

    #[test]
    fn accepts_numbers() {
        assert_eq!(parse(b"1"), Some(1));
        assert_eq!(parse(b" 4194304\n"), Some(4_194_304));
        assert_eq!(parse(b"0007"), Some(7));
        assert_eq!(parse(b"2147483647"), Some(i32::MAX));
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            &b""[..],
            b"\n",
            b"-1",
            b"+1",
            b"1 2",
            b"0x1",
            b"2147483648",
            b"99999999999999999999",
            b"self",
            b"1\0",
        ] {
            assert_eq!(parse(text), None);
        }
    }
}
