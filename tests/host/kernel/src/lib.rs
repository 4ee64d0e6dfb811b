// SPDX-License-Identifier: GPL-2.0

//! A stand-in for the kernel crate: what `rust/pure` uses of it, over `core`.

#![no_std]

/// `kernel::sync`.
pub mod sync {
    /// `kernel::sync::atomic`: the same names over [`core::sync::atomic`].
    pub mod atomic {
        use core::{
            cell::UnsafeCell,
            mem::align_of,
            sync::atomic::Ordering, //
        };

        /// An ordering, as a type.
        pub trait AnyOrdering {
            /// The ordering of `core` that is at least as strong.
            const ORDERING: Ordering;
        }

        /// No order with other memory.
        pub struct Relaxed;

        impl AnyOrdering for Relaxed {
            const ORDERING: Ordering = Ordering::Relaxed;
        }

        /// A value that [`Atomic`] can hold.
        ///
        /// # Safety
        ///
        /// `Cell` has the size and the alignment of `Self`.
        pub unsafe trait AtomicType: Copy + 'static {
            /// The atomic type of `core`.
            type Cell: 'static;

            /// Loads.
            fn load(cell: &Self::Cell, order: Ordering) -> Self;
            /// Stores.
            fn store(cell: &Self::Cell, value: Self, order: Ordering);
            /// Adds, and returns what was there before.
            fn fetch_add(cell: &Self::Cell, value: Self, order: Ordering) -> Self;
        }

        macro_rules! atomic_type {
            ($value:ty, $cell:ty) => {
                const _: () = assert!(align_of::<$value>() == align_of::<$cell>());

                // SAFETY: The standard library promises the size; the alignment is checked above.
                unsafe impl AtomicType for $value {
                    type Cell = $cell;

                    fn load(cell: &Self::Cell, order: Ordering) -> Self {
                        cell.load(order)
                    }

                    fn store(cell: &Self::Cell, value: Self, order: Ordering) {
                        cell.store(value, order)
                    }

                    fn fetch_add(cell: &Self::Cell, value: Self, order: Ordering) -> Self {
                        cell.fetch_add(value, order)
                    }
                }
            };
        }

        atomic_type!(u32, core::sync::atomic::AtomicU32);
        atomic_type!(u64, core::sync::atomic::AtomicU64);

        /// An atomic variable.
        #[repr(transparent)]
        pub struct Atomic<T: AtomicType>(UnsafeCell<T>);

        // SAFETY: The value is accessed through its atomic type only.
        unsafe impl<T: AtomicType> Sync for Atomic<T> {}

        impl<T: AtomicType> Atomic<T> {
            /// Makes the variable.
            pub const fn new(value: T) -> Self {
                Self(UnsafeCell::new(value))
            }

            fn cell(&self) -> &T::Cell {
                // SAFETY: Size and alignment fit, by the safety requirement of `AtomicType`, and
                // nothing accesses the value in another way.
                unsafe { &*self.0.get().cast() }
            }

            /// Loads the value.
            pub fn load<O: AnyOrdering>(&self, _: O) -> T {
                T::load(self.cell(), O::ORDERING)
            }

            /// Stores a value.
            pub fn store<O: AnyOrdering>(&self, value: T, _: O) {
                T::store(self.cell(), value, O::ORDERING)
            }

            /// Adds, and returns what was there before.
            pub fn fetch_add<O: AnyOrdering>(&self, value: T, _: O) -> T {
                T::fetch_add(self.cell(), value, O::ORDERING)
            }
        }
    }
}
