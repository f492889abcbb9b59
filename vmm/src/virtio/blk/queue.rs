//! The request queue of the block device (virtio 1.2, 5.2.6): header, data, status.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use thiserror::Error;
use virtio_bindings::virtio_blk::*;
use volt_virtio::features::Features;

use crate::faults::Faults;
use crate::virtio::blk::image::DiskImage;
use crate::virtio::blk::{RANGE_SECTORS_MAX, RANGES_MAX, SECTOR_SIZE, SEG_MAX, SIZE_MAX};
use crate::virtio::chain::{Buffers, Chain, ChainError};

/// `type`, `reserved`, `sector`.
const HEADER_LEN: usize = 16;
/// `sector`, `num_sectors`, `flags` of a discard or write-zeroes request.
const RANGE_LEN: usize = 16;
/// Most data in one request, by the limits in the configuration space.
const DATA_MAX: usize = SIZE_MAX as usize * SEG_MAX as usize;

/// Why a request has another status than OK.
#[derive(Debug, Error)]
enum RequestError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    #[error("request type {0} is not supported")]
    Unsupported(u32),
    #[error("{sectors} sectors from {sector} on are outside of the disk")]
    OutOfRange { sector: u64, sectors: u64 },
    #[error("the disk is read-only")]
    ReadOnly,
    #[error("cannot {0} the image")]
    Image(&'static str, #[source] io::Error),
}

impl RequestError {
    fn status(&self) -> u8 {
        match self {
            RequestError::Unsupported(_) => VIRTIO_BLK_S_UNSUPP as u8,
            _ => VIRTIO_BLK_S_IOERR as u8,
        }
    }
}

/// The number of requests since the device was created.
#[derive(Default)]
pub struct Counts {
    all: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    /// Returns the number of all requests, and of those with another status than OK.
    pub fn get(&self) -> (u64, u64) {
        (self.all.load(Relaxed), self.failed.load(Relaxed))
    }
}

/// Serves requests on an image during one activation.
pub struct RequestQueue {
    image: Arc<DiskImage>,
    counts: Arc<Counts>,
    /// Without FLUSH, the driver takes a completed write for a stable one (5.2.6.2).
    write_through: bool,
    /// Faults of the guest.
    guest: Faults,
    /// Faults of the host. Counted separately, so that neither kind suppresses the log lines of the other.
    host: Faults,
}

impl RequestQueue {
    /// Creates a server for a driver that acknowledged `features`. `label` starts its log lines.
    pub fn new(label: &str, image: Arc<DiskImage>, features: Features, counts: Arc<Counts>) -> RequestQueue {
        let write_through = !features.contains(Features::BLK_FLUSH);
        RequestQueue { image, counts, write_through, guest: Faults::new(label), host: Faults::new(label) }
    }

    /// Serves one chain. Returns the number of bytes written from the start of its writable half.
    pub fn serve(&mut self, chain: Result<&Chain<'_>, ChainError>) -> u32 {
        self.counts.all.fetch_add(1, Relaxed);
        match chain.map_err(RequestError::from).and_then(Request::split) {
            Ok(request) => self.answer(&request),
            // There is no room for a status.
            Err(error) => {
                self.counts.failed.fetch_add(1, Relaxed);
                self.guest.report(&error);
                0
            }
        }
    }

    fn answer(&mut self, request: &Request<'_>) -> u32 {
        let result = self.execute(request);
        // The status comes last in the chain: either all bytes before it were written, or none counts.
        let (status, used) = match &result {
            Ok(()) => (VIRTIO_BLK_S_OK as u8, request.data_in.len() + 1),
            Err(error) => (error.status(), if request.data_in.is_empty() { 1 } else { 0 }),
        };
        request.status.copy_from(&[status]);
        self.counts.failed.fetch_add(result.is_err().into(), Relaxed);
        match &result {
            Ok(()) => {}
            Err(error @ RequestError::Image(..)) => self.host.report(error),
            Err(error) => self.guest.report(error),
        }
        used as u32
    }

    fn execute(&self, request: &Request<'_>) -> Result<(), RequestError> {
        let (kind, sector) = request.header()?;
        let (data_in, data_out) = (&request.data_in, &request.data_out);
        match kind {
            VIRTIO_BLK_T_IN if !data_out.is_empty() => {
                Err(RequestError::Malformed("a read request with data to write"))
            }
            VIRTIO_BLK_T_IN => {
                let offset = self.offset(sector, data_in)?;
                self.image.read_at(data_in, offset).map_err(|error| RequestError::Image("read", error))
            }
            VIRTIO_BLK_T_GET_ID => self.get_id(data_in),
            // Only the two request types above return data to the guest.
            _ if !data_in.is_empty() => Err(match kind {
                VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                    RequestError::Malformed("room for data in a request that returns none")
                }
                _ => RequestError::Unsupported(kind),
            }),
            VIRTIO_BLK_T_FLUSH => self.flush(),
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
                if self.image.is_read_only() =>
            {
                Err(RequestError::ReadOnly)
            }
            VIRTIO_BLK_T_OUT => {
                let offset = self.offset(sector, data_out)?;
                self.image.write_at(data_out, offset).map_err(|error| RequestError::Image("write", error))?;
                self.settle()
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                for range in self.ranges(kind, data_out)? {
                    self.clear(kind, range)?;
                }
                self.settle()
            }
            _ => Err(RequestError::Unsupported(kind)),
        }
    }

    fn get_id(&self, data_in: &Buffers<'_>) -> Result<(), RequestError> {
        let id = self.image.id();
        match data_in.len().checked_sub(id.len()) {
            Some(0) => {
                data_in.copy_from(&id);
                Ok(())
            }
            _ => Err(RequestError::Malformed("get-id without room for exactly 20 bytes")),
        }
    }

    fn flush(&self) -> Result<(), RequestError> {
        self.image.sync().map_err(|error| RequestError::Image("flush", error))
    }

    /// Makes a change stable before it is acknowledged, if necessary.
    fn settle(&self) -> Result<(), RequestError> {
        if self.write_through { self.flush() } else { Ok(()) }
    }

    /// Returns the byte offset of `sector`, if `data` is whole sectors within the disk.
    fn offset(&self, sector: u64, data: &Buffers<'_>) -> Result<u64, RequestError> {
        let len = data.len() as u64;
        if !len.is_multiple_of(SECTOR_SIZE) {
            return Err(RequestError::Malformed("data that is not whole sectors"));
        }
        if data.len() > DATA_MAX {
            return Err(RequestError::Malformed("more data than size_max and seg_max allow"));
        }
        self.check(sector, len / SECTOR_SIZE)
    }

    fn check(&self, sector: u64, sectors: u64) -> Result<u64, RequestError> {
        match sector.checked_add(sectors) {
            Some(end) if end <= self.image.sectors() => Ok(sector * SECTOR_SIZE),
            _ => Err(RequestError::OutOfRange { sector, sectors }),
        }
    }

    /// Returns the ranges of a discard or write-zeroes request. All are checked before the first is changed.
    fn ranges(&self, kind: u32, data: &Buffers<'_>) -> Result<Vec<Range>, RequestError> {
        if data.is_empty() || !data.len().is_multiple_of(RANGE_LEN) {
            return Err(RequestError::Malformed("ranges that are not 16 bytes each"));
        }
        if data.len() / RANGE_LEN > RANGES_MAX as usize {
            return Err(RequestError::Malformed("more ranges than max_discard_seg or max_write_zeroes_seg"));
        }
        // Copied once, because the guest may change the original between the check and the use.
        let mut bytes = vec![0; data.len()];
        data.copy_to(&mut bytes);
        bytes.as_chunks().0.iter().map(|range| self.range(kind, range)).collect()
    }

    fn range(&self, kind: u32, bytes: &[u8; RANGE_LEN]) -> Result<Range, RequestError> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = *bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let known = if kind == VIRTIO_BLK_T_DISCARD { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
        if flags & !known != 0 {
            // 5.2.6.2 requires UNSUPP for unknown flags, and for unmap in a discard.
            return Err(RequestError::Unsupported(kind));
        }
        if sectors > RANGE_SECTORS_MAX {
            return Err(RequestError::Malformed(
                "a range longer than max_discard_sectors or max_write_zeroes_sectors",
            ));
        }
        let offset = self.check(sector, sectors.into())?;
        Ok(Range { offset, len: u64::from(sectors) * SECTOR_SIZE, unmap: flags != 0 })
    }

    fn clear(&self, kind: u32, range: Range) -> Result<(), RequestError> {
        let Range { offset, len, unmap } = range;
        if len == 0 {
            return Ok(());
        }
        if kind == VIRTIO_BLK_T_DISCARD {
            return self.image.discard(offset, len).map_err(|error| RequestError::Image("discard in", error));
        }
        self.image
            .write_zeroes(offset, len, unmap)
            .map_err(|error| RequestError::Image("write zeroes to", error))
    }
}

struct Range {
    offset: u64,
    len: u64,
    unmap: bool,
}

/// A chain divided into its parts. The driver may spread them over descriptors in any way (2.7.4).
struct Request<'m> {
    head: Option<Buffers<'m>>,
    data_out: Buffers<'m>,
    data_in: Buffers<'m>,
    status: Buffers<'m>,
}

impl<'m> Request<'m> {
    fn split(chain: &Chain<'m>) -> Result<Request<'m>, RequestError> {
        let no_status = RequestError::Malformed("no room for a status");
        let data_len = chain.writable.len().checked_sub(1);
        let Some((data_in, status)) = data_len.and_then(|len| chain.writable.split_at(len)) else {
            return Err(no_status);
        };
        let (head, data_out) = match chain.readable.split_at(HEADER_LEN) {
            Some((head, data_out)) => (Some(head), data_out),
            None => (None, Buffers::default()),
        };
        Ok(Request { head, data_out, data_in, status })
    }

    /// Returns `type` and `sector`.
    fn header(&self) -> Result<(u32, u64), RequestError> {
        let head = self.head.as_ref().ok_or(RequestError::Malformed("a header of less than 16 bytes"))?;
        let mut bytes = [0; HEADER_LEN];
        head.copy_to(&mut bytes);
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = bytes;
        Ok((u32::from_le_bytes([k0, k1, k2, k3]), u64::from_le_bytes(sector)))
    }
}
