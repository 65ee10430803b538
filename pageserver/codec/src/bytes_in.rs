//! A cursor over bytes that came from outside: every read is checked, every failure says where.

/// The input ended too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} bytes expected at offset {at}, only {left} left")]
pub struct Truncated {
    /// Offset in the input.
    pub at: usize,
    /// How many bytes were asked for.
    pub wanted: usize,
    /// How many there were.
    pub left: usize,
}

/// Reads values one after the other from a slice.
#[derive(Clone, Debug)]
pub struct BytesIn<'a> {
    rest: &'a [u8],
    total: usize,
}

macro_rules! readers {
    ($($(#[$doc:meta])* $name:ident: $type:ty, $from:ident;)*) => {
        $($(#[$doc])*
        #[inline]
        pub fn $name(&mut self) -> Result<$type, Truncated> {
            self.array().map(<$type>::$from)
        })*
    };
}

impl<'a> BytesIn<'a> {
    /// Starts at the first byte.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Self {
        BytesIn { rest: bytes, total: bytes.len() }
    }

    /// Bytes read so far.
    #[inline]
    pub fn position(&self) -> usize {
        self.total - self.rest.len()
    }

    /// Bytes not read yet.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// All that is left, without reading it.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `count` bytes.
    #[inline]
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Truncated> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(self.truncated(count)),
        }
    }

    /// The next `N` bytes as an array.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        match self.rest.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(*taken)
            }
            None => Err(self.truncated(N)),
        }
    }

    #[cold]
    fn truncated(&self, wanted: usize) -> Truncated {
        Truncated { at: self.position(), wanted, left: self.rest.len() }
    }

    /// Skips `count` bytes.
    #[inline]
    pub fn skip(&mut self, count: usize) -> Result<(), Truncated> {
        self.take(count).map(drop)
    }

    readers! {
        /// One byte.
        u8: u8, from_le_bytes;
        /// Little-endian.
        u16_le: u16, from_le_bytes;
        /// Little-endian.
        u32_le: u32, from_le_bytes;
        /// Little-endian.
        u64_le: u64, from_le_bytes;
        /// Little-endian.
        i32_le: i32, from_le_bytes;
        /// Little-endian.
        i64_le: i64, from_le_bytes;
        /// Big-endian.
        u16_be: u16, from_be_bytes;
        /// Big-endian.
        u32_be: u32, from_be_bytes;
        /// Big-endian.
        u64_be: u64, from_be_bytes;
        /// Big-endian.
        i64_be: i64, from_be_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_input_says_where_it_ended() {
        let mut input = BytesIn::new(&[1, 2, 3]);
        assert_eq!(input.u16_le(), Ok(0x0201));
        assert_eq!(input.u32_be(), Err(Truncated { at: 2, wanted: 4, left: 1 }));
        assert_eq!(input.u8(), Ok(3));
        assert_eq!(input.take(1), Err(Truncated { at: 3, wanted: 1, left: 0 }));
        assert_eq!(input.remaining(), 0);
    }
}
