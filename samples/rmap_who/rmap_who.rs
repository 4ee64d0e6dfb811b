// SPDX-License-Identifier: GPL-2.0

//! A sample of a module that uses another one's reverse map: who maps this page?
//!
//! `/dev/rmap_who` takes `PID ADDRESS` (decimal, hexadecimal) in one write, and what is then read
//! from the same open file has one line for each mapping of the page that this process has there:
//! `PID ADDRESS lazy|linked|detaching`. `samples/rmap-who.c` is a front end. For root only.
//!
//! Nothing of this file knows how an anonymous page is found: that is one call, [`api::who`].

use kernel::{
    fs::{
        File,
        Kiocb, //
    },
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    new_mutex,
    prelude::*,
    str::CString,
    sync::Mutex, //
};

module! {
    type: RmapWho,
    name: "rmap_who",
    authors: ["anon_vma_lazy maintainers"],
    description: "Sample: who maps an anonymous page (needs anon_vma_lazy.ko)",
    license: "GPL",
}

/// `include/anon_rmap.h`, as Rust sees it.
mod api {
    use kernel::{
        ffi::{
            c_long,
            c_ulong, //
        },
        prelude::*, //
    };

    /// `struct anon_rmap_where`.
    #[derive(Clone, Copy, Default)]
    #[repr(C)]
    pub(crate) struct Where {
        /// Where the page is mapped.
        pub(crate) address: u64,
        /// By which process.
        pub(crate) pid: i32,
        how: u32,
    }

    impl Where {
        /// How the VMA is found, as a word.
        pub(crate) fn how(&self) -> &'static str {
            match self.how {
                1 => "lazy",
                2 => "linked",
                3 => "detaching",
                _ => "unknown",
            }
        }
    }

    extern "C" {
        fn anon_rmap_who(pid: i32, address: c_ulong, out: *mut Where, max: usize) -> c_long;
    }

    /// The mappings of the page that process `pid` has at `address`. May sleep; no lock may be held.
    ///
    /// # Errors
    ///
    /// Those of `anon_rmap_who()`, and [`ENOMEM`]; [`EAGAIN`] if there are more at each attempt.
    pub(crate) fn who(pid: i32, address: usize) -> Result<KVec<Where>> {
        let mut room = 32;
        for _ in 0..8 {
            let mut list = KVec::from_elem(Where::default(), room, GFP_KERNEL)?;
            // SAFETY: The list has room for so many, and they may be overwritten.
            let count = unsafe { anon_rmap_who(pid, address, list.as_mut_ptr(), room) };
            let count = usize::try_from(count).map_err(|_| Error::from_errno(count as i32))?;
            if count <= room {
                list.truncate(count);
                return Ok(list);
            }
            room = count + 32;
        }
        Err(EAGAIN)
    }
}

/// The loaded module.
#[pin_data]
struct RmapWho {
    #[pin]
    _device: MiscDeviceRegistration<Query>,
}

impl kernel::InPlaceModule for RmapWho {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _device <- MiscDeviceRegistration::register(MiscDeviceOptions { name: c"rmap_who" }),
        })
    }
}

/// One open file: the answer to its last question.
#[pin_data]
struct Query {
    #[pin]
    answer: Mutex<KVec<u8>>,
}

/// Reads `PID ADDRESS`.
fn parse(text: &[u8]) -> Option<(i32, usize)> {
    let text = core::str::from_utf8(text).ok()?;
    let mut words = text.split_ascii_whitespace();
    let (pid, address) = (words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    let address = address.strip_prefix("0x").unwrap_or(address);
    Some((pid.parse().ok()?, usize::from_str_radix(address, 16).ok()?))
}

#[vtable]
impl MiscDevice for Query {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        KBox::pin_init(
            pin_init!(Query {
                answer <- new_mutex!(KVec::new()),
            }),
            GFP_KERNEL,
        )
    }

    fn write_iter(mut kiocb: Kiocb<'_, Self::Ptr>, iov: &mut IovIterSource<'_>) -> Result<usize> {
        let mut text = [0; 64];
        let len = iov.copy_from_iter(&mut text);
        if !iov.is_empty() {
            return Err(EINVAL);
        }
        let (pid, address) = text.get(..len).and_then(parse).ok_or(EINVAL)?;

        let mut answer = KVec::new();
        for found in api::who(pid, address)? {
            let line =
                CString::try_from_fmt(fmt!("{} {:x} {}\n", found.pid, found.address, found.how()))?;
            answer.extend_from_slice(line.to_bytes(), GFP_KERNEL)?;
        }
        *kiocb.file().answer.lock() = answer;
        // What is read next is the answer, from its start.
        *kiocb.ki_pos_mut() = 0;
        Ok(len)
    }

    fn read_iter(mut kiocb: Kiocb<'_, Self::Ptr>, iov: &mut IovIterDest<'_>) -> Result<usize> {
        let query = kiocb.file();
        let answer = query.answer.lock();
        iov.simple_read_from_buffer(kiocb.ki_pos_mut(), &answer)
    }
}
