//! Feature bits of the block device (virtio 1.2, section 5.2.3).

class! {
    /// `size_max` has the maximum size of a segment.
    BLK_SIZE_MAX SIZE_MAX = 1;
    /// `seg_max` has the maximum number of segments in a request.
    BLK_SEG_MAX SEG_MAX = 2;
    /// The device is read-only.
    BLK_RO RO = 5;
    /// `blk_size` has the size of a block.
    BLK_BLK_SIZE BLK_SIZE = 6;
    /// The device has a cache, and accepts requests to flush it.
    BLK_FLUSH FLUSH = 9;
    /// `topology` has sizes for good performance.
    BLK_TOPOLOGY TOPOLOGY = 10;
    /// The driver may switch the cache mode by `writeback`.
    BLK_CONFIG_WCE CONFIG_WCE = 11;
    /// The device has several queues.
    BLK_MQ MQ = 12;
    /// The device accepts requests to discard.
    BLK_DISCARD DISCARD = 13;
    /// The device accepts requests to write zeroes.
    BLK_WRITE_ZEROES WRITE_ZEROES = 14;
}
