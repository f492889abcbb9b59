//! Feature bits of the block device (virtio 1.2, section 5.2.3).

class! {
    /// Largest size of a segment is in `size_max`.
    BLK_SIZE_MAX SIZE_MAX = 1;
    /// Most segments in a request are in `seg_max`.
    BLK_SEG_MAX SEG_MAX = 2;
    /// The device is read-only.
    BLK_RO RO = 5;
    /// The size of a block is in `blk_size`.
    BLK_BLK_SIZE BLK_SIZE = 6;
    /// The device has a cache, and takes requests to write it out.
    BLK_FLUSH FLUSH = 9;
    /// Sizes for good performance are in `topology`.
    BLK_TOPOLOGY TOPOLOGY = 10;
    /// The driver may switch the cache by `writeback`.
    BLK_CONFIG_WCE CONFIG_WCE = 11;
    /// There are several queues.
    BLK_MQ MQ = 12;
    /// The device takes requests to discard.
    BLK_DISCARD DISCARD = 13;
    /// The device takes requests to write zeroes.
    BLK_WRITE_ZEROES WRITE_ZEROES = 14;
}
