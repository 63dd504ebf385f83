/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVCLIENT_H
#define KVCLIENT_H

/*
 * libkvclient: borrow GPU memory from kvcachedd, page by page.
 *
 * A client is a connection to the daemon of one GPU, under the name of an instance. A region is a reservation
 * of device address space, divided into pages. Mapping a page borrows physical extents from the daemon and
 * puts them behind the page's addresses; unmapping gives them back, or keeps them in the library's own
 * caches.
 *
 * Units: all sizes are bytes. Addresses are CUDA device addresses (CUdeviceptr).
 *
 * Threads: every function may be called from any thread, except that a handle must not be used while or after
 * it is closed. Calls on one client take turns, but not while one waits for the daemon: a map that waits
 * keeps nobody from unmapping. kvc_status() never waits.
 *
 * CUDA: the library works in the device's primary context, and leaves the calling thread's current context as
 * it found it. It doesn't wait for kernels: unmap a page only when nothing on the GPU uses it any more, or
 * with kvc_region_unmap_after(), and free blocks with an epoch.
 *
 * Errors: functions that return int return 0 or a negative KVC_E_* value. kvc_last_error() has the details. A
 * call that fails has changed nothing, unless it says otherwise. The library never aborts, installs no signal
 * handler, raises no SIGPIPE, writes nothing to stdout or stderr.
 *
 * Fork: handles don't work in a forked child; every call that can fail returns KVC_E_FORKED there, the close
 * functions free host memory only.
 */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) && !defined(KVC_API)
#define KVC_API __attribute__((visibility("default")))
#elif !defined(KVC_API)
#define KVC_API
#endif

enum kvc_error {
    KVC_OK = 0,
    KVC_E_INVALID = -1,        /* an argument is out of range, or not aligned */
    KVC_E_NOMEM = -2,          /* out of host memory */
    KVC_E_NOFILE = -3,         /* the process' descriptor table is full; free some and call again */
    KVC_E_CONNECT = -4,        /* no daemon at that socket, or one that is not to be trusted */
    KVC_E_VERSION = -5,        /* daemon and library speak no common protocol version */
    KVC_E_PROTOCOL = -6,       /* the daemon sent something that makes no sense; the connection is over */
    KVC_E_REFUSED = -7,        /* the daemon does not accept this process, instance name or GPU */
    KVC_E_LIMIT = -8,          /* the instance's limit cannot hold it */
    KVC_E_BUDGET = -9,         /* the daemon's budget cannot hold it */
    KVC_E_DEVICE_MEMORY = -10, /* the GPU has less free memory than limit and budget allow */
    KVC_E_DRIVER = -11,        /* a driver call failed, or no driver */
    KVC_E_DISCONNECTED = -12,  /* the connection ended; for good. Mapped pages keep working */
    KVC_E_TIMEOUT = -13,       /* no answer in time; what arrives later is given back */
    KVC_E_FORKED = -14,        /* called in a forked child */
    KVC_E_FROZEN = -15,        /* an administrator froze the instance */
    KVC_E_ENVIRONMENT = -16,   /* a KVCACHED_* variable has a value that cannot be used */
    KVC_E_MAPPED = -17,        /* a page is mapped already, or named twice */
    KVC_E_NOT_MAPPED = -18,    /* a page is not mapped, or named twice */
    KVC_E_NOSPACE = -19,       /* the driver has no address space of that size, or not so many mappings */
    KVC_E_WORKER = -20,        /* the worker did not do what its scheduler wanted */
    KVC_E_IN_DOUBT = -21,      /* a worker has not answered: its page is unusable until it does */
    KVC_E_PINNED = -22,        /* a page is pinned */
    KVC_E_NO_BLOCKS = -23,     /* there are not so many blocks, however much memory there is */
    KVC_E_NOT_ALLOCATED = -24, /* a block is not allocated, or named twice */
    KVC_E_RESOURCES = -25,   /* the daemon is short of descriptors or host memory, or of the client's share */
    KVC_E_INTERRUPTED = -26, /* the host wanted the call to end; otherwise as KVC_E_TIMEOUT */
    KVC_E_WORKER_GONE = -27, /* the worker is gone, for good */
};

/* A short sentence for an error; never NULL. Any thread, any time. */
KVC_API const char *kvc_strerror(int error);

/* Details of the last failed call of this thread, one sentence; "" when there was none. Valid until the
 * thread's next call. */
KVC_API const char *kvc_last_error(void);

/* Version of the library, "0.2.0". */
KVC_API const char *kvc_version(void);

enum kvc_log_level { KVC_LOG_DEBUG, KVC_LOG_INFO, KVC_LOG_WARNING, KVC_LOG_ERROR };

/* Gets one sentence without newline. May be called from any thread that is inside the library, the library's
 * own included, and while the client is busy: it must not call the library. */
typedef void (*kvc_log_fn)(void *data, enum kvc_log_level level, const char *sentence);

enum kvc_role {
    KVC_ROLE_ENGINE = 1,     /* decides and maps */
    KVC_ROLE_WORKER = 2,     /* maps for a scheduler in another process */
    KVC_ROLE_SCHEDULER = 3,  /* decides, for workers in other processes; the GPU is not touched */
    KVC_ROLE_CONTROLLER = 4, /* keeps memory for an instance's engines, see kvc_reserve(); likewise */
};

struct kvc_client;
struct kvc_region;

/* What the library asks of its engine. Called inside kvc_dispatch(), or on the library's own thread, without
 * any lock held: it may call the library, kvc_close() aside. Members may be NULL. */
struct kvc_listener {
    size_t size; /* sizeof(struct kvc_listener) */

    /* Memory is wanted back: `bytes`, beyond what the library has given back by itself, within `deadline_ms`.
     * Free what can be spared, here or soon; what is freed goes back at once while the instance is asked for
     * memory. An engine that does not is granted nothing until it is within its limit. */
    void (*reclaim)(void *data, struct kvc_client *client, uint64_t bytes, unsigned deadline_ms);
};

/* Zero-initialise, set `size`, set what is needed. */
struct kvc_options {
    size_t size; /* sizeof(struct kvc_options) */

    /* Path of the daemon's socket. NULL: $KVCACHED_SOCKET, else the first of $RUNTIME_DIRECTORY,
     * /run/kvcached and $XDG_RUNTIME_DIR/kvcached that has the GPU's socket. */
    const char *socket;

    /* 1 to 64 of [A-Za-z0-9._-], not starting with '.' or '-'. NULL: $KVCACHED_IPC_NAME, else
     * kvcached_proc_<process group>. */
    const char *instance;

    const char *gpu; /* "GPU-<uuid>", or the number in PCI bus order; NULL: 0, or whatever `socket` serves */
    enum kvc_role role; /* 0: KVC_ROLE_ENGINE */
    int own_thread;     /* not 0: a library thread dispatches and refills caches; else call kvc_dispatch() */
    int timeout_ms;     /* for the daemon's answer, and a worker's; negative: no limit. 0:
                         * $KVCACHED_IPC_TIMEOUT in seconds (0 or negative: no limit), else 60,000 */
    kvc_log_fn log;     /* NULL: silence */
    void *log_data;

    /* Pages that are kept ready per region, once it has been used; never more than max_reserved_pages. -1:
     * $KVCACHED_MIN_RESERVED_PAGES, else 5; 0 when $KVCACHED_PAGE_PREALLOC_ENABLED is false. */
    int min_reserved_pages;

    /* Free pages that are kept per region at most, mapped or not. -1: $KVCACHED_MAX_RESERVED_PAGES, else 10.
     */
    int max_reserved_pages;

    /* ... and in bytes: of all regions together, but of each kvc_blocks by itself. 0: no further bound. */
    uint64_t max_reserved_bytes;

    /* This engine's own wish for a limit, a fraction of the device, above 0 and at most 1. 0:
     * $KVCACHED_GPU_UTILIZATION if set, else none. */
    double gpu_utilization;

    /* Since 0.2. Must live as long as the client. NULL: the engine never gives up memory that it uses. */
    const struct kvc_listener *listener;
    void *listener_data;

    /* Since 0.2: for how many ms a report of available blocks holds, see kvc_blocks_available(). 0: 100. */
    unsigned report_ms;

    /* Since 0.2: whether the call of the thread at hand is to end, not 0, or not. Asked every 100 ms on
     * threads of the host that wait in the library for the daemon, a worker, or a thread that does; without
     * any lock held: it may call the library, but close nothing that waiting calls use, nor return in a
     * forked child. Once it has said yes it must do so until the call has returned, which may have to wait to
     * undo what it has done. The call then ends with KVC_E_INTERRUPTED, and for all that it has asked for is
     * as one that ended with KVC_E_TIMEOUT; unless it has succeeded meanwhile. Who closes something closes
     * it, whatever has been confirmed, but waits for threads that are in a call on it. NULL: calls end by
     * themselves. */
    int (*interrupted)(void *data);
    void *interrupted_data;
};

/* Connects to the daemon and checks that it is one: root, this user, the user `kvcached`, or the uid in
 * $KVCACHED_DAEMON_UID. Loads the CUDA driver, or the emulated one that belongs to this library when the
 * daemon's device is emulated; a scheduler or a controller loads none. KVC_E_VERSION for a scheduler or a
 * controller whose daemon doesn't know such. */
KVC_API int kvc_open(const struct kvc_options *options, struct kvc_client **ret);

/* Closes the regions that are left, returns their memory, disconnects. NULL is fine; returns NULL. */
KVC_API struct kvc_client *kvc_close(struct kvc_client *client);

/* For event loops: poll the descriptor for the events (POLLIN, POLLOUT), then dispatch. It stays valid, and
 * readable, after a disconnect. It becomes readable, too, when a call on another thread leaves something to
 * do. The timeout is in ms, as poll() takes it: dispatch is wanted then, too. Ask for events and timeout anew
 * before every poll, on the thread that polls. kvc_get_fd(): also KVC_E_NOFILE, KVC_E_NOMEM. */
KVC_API int kvc_get_fd(const struct kvc_client *client);
KVC_API int kvc_get_events(struct kvc_client *client);
KVC_API int kvc_get_timeout(struct kvc_client *client);

/* Does what there is to do: receives answers, carries out a scheduler's orders, refills caches, calls the
 * listener. Waits only where the daemon has asked for memory: until it has confirmed what is given back, as
 * long as the client's timeout. KVC_E_DISCONNECTED again and again once disconnected. */
KVC_API int kvc_dispatch(struct kvc_client *client);

struct kvc_status {
    size_t size;           /* set by the caller: sizeof(struct kvc_status) */
    uint64_t limit_bytes;  /* of the instance, in force */
    uint64_t used_bytes;   /* by the instance, all its peers, caches included; may include promises */
    uint64_t budget_bytes; /* of the daemon */
    uint64_t mapped_bytes; /* this client's mapped pages, the free ones of a kvc_blocks included; a scheduler
                            * maps none itself */
    uint64_t cached_bytes; /* this client's free pages otherwise, still mapped or only imported */
    int over_limit;        /* used is above the limit: nothing is granted */
    int frozen;
    int connected; /* as far as the library has noticed */
};

/* Copies counters; no message, no lock. */
KVC_API int kvc_status(struct kvc_client *client, struct kvc_status *ret);

#define KVC_CLASSES_MAX 8

struct kvc_device {
    size_t size;   /* set by the caller: sizeof(struct kvc_device) */
    char uuid[64]; /* "GPU-..." */
    uint64_t total_bytes;
    uint64_t granularity_bytes; /* of pages, segments, extents */
    uint32_t n_classes;
    uint64_t class_bytes[KVC_CLASSES_MAX]; /* extent sizes, smallest first */
    int emulated;
    int ordinal; /* CUdevice of this process; -1 in a scheduler and in a controller */
};
KVC_API int kvc_device(struct kvc_client *client, struct kvc_device *ret);

/* The driver library that this client uses, for dlopen() by who wants to make further driver calls on the
 * same device. Lives as long as the client. NULL in a scheduler and in a controller. */
KVC_API const char *kvc_driver_path(const struct kvc_client *client);

/* Gives all cached free pages back to the daemon, and those that wait for the GPU, which is waited for; and
 * refills no cache before the region's next map. Of a kvc_blocks it takes the free pages, and what is set
 * aside, that no report counts on: kvc_blocks_trim() takes those, too, and keeps pages from being made ready
 * anew. KVC_E_DRIVER, KVC_E_TIMEOUT, KVC_E_DISCONNECTED. */
KVC_API int kvc_trim(struct kvc_client *client);

/* Flags of a region, since 0.2. */
enum kvc_region_flags {
    /* Pages read as zero after a map, for what `stream` does next: they are cleared in its order
     * (cuMemsetD8Async), also where the memory was this region's before. Other streams must wait for it. Map
     * nothing while the stream is being captured into a graph: the graph would clear the page whenever it
     * runs. Unmapping, changing the stream and closing wait until the GPU has cleared what it was told to.
     * Blocks are not cleared when they are handed out: the page was, when it was mapped. */
    KVC_REGION_ZERO_ON_MAP = 1,

    /* What is not mapped can be read and written, instead of faulting: behind it lies a zero page that this
     * region alone has. It reads as zero until something is written there, which then shows in every hole.
     * Takes one extent of each size that the pages have, charged to the instance like any page (so opening
     * can be KVC_E_LIMIT, KVC_E_BUDGET and so on); a mapping of the driver for each extent of each page that
     * isn't mapped, all of which kvc_region_open() makes (KVC_E_NOSPACE where that is more than the driver
     * has); and for each segment of a page one more driver call to map it, and one for each of its extents
     * and one more to unmap it. While a page is mapped or unmapped nothing on the GPU may use its addresses,
     * nor the hole there. */
    KVC_REGION_HOLES_ZERO = 2,

    KVC_REGION_ORDERED = 4, /* of a worker: the instance's scheduler maps it, see kvc_region_attach() */
};

struct kvc_region_options {
    size_t size;         /* sizeof(struct kvc_region_options) */
    uint32_t segments;   /* 0: 1. Parts in which every page has its share (for instance one per layer) */
    uint64_t page_bytes; /* of one page in one segment; a multiple of the granularity */
    uint64_t pages;      /* capacity */
    uint64_t
        stride_bytes; /* from one segment to the next; 0: pages × page_bytes; a multiple of the granularity */

    /* Classes that make up page_bytes, in order. NULL: largest first. */
    const uint64_t *extent_bytes;
    size_t n_extents;

    /* Since 0.2. */
    uint32_t flags; /* KVC_REGION_* */
    void *stream;   /* CUstream of the device's primary context, in use until another is set or the region is
                     * closed; NULL: the default stream. Not CU_STREAM_PER_THREAD: KVC_E_INVALID */
    uint32_t group; /* for KVC_REGION_ORDERED: which of the engine's regions this is */
    uint32_t rank;  /* ... and which of its workers */
};

/* Reserves address space. Costs no memory, holes aside. A client has up to 256 regions, one with holes
 * counting twice (then KVC_E_RESOURCES). KVC_E_INVALID, KVC_E_NOSPACE, KVC_E_DRIVER; KVC_E_BUDGET when not
 * even one page could be backed; KVC_E_VERSION for KVC_REGION_ORDERED with a daemon older than 0.2. */
KVC_API int kvc_region_open(struct kvc_client *client, const struct kvc_region_options *options,
                            struct kvc_region **ret);

/* Unmaps what is mapped, pinned or not, returns it to the daemon, frees the address space. Pages that wait
 * for the GPU are waited for. NULL is fine; returns NULL. */
KVC_API struct kvc_region *kvc_region_close(struct kvc_region *region);

/* CUdeviceptr of page 0 in segment 0. Page i of segment s is at address + s × stride + i × page_bytes. */
KVC_API uint64_t kvc_region_address(const struct kvc_region *region);
KVC_API uint64_t kvc_region_stride(const struct kvc_region *region);

struct kvc_hold;

/* Since 0.2. Keeps the region's addresses reserved when it is closed, for those who may hold pointers into
 * it until later, a framework's tensors for instance: closing takes the memory behind them, and nobody else
 * gets the addresses before the last hold is released. Each call makes a hold of its own. KVC_E_NOMEM;
 * KVC_E_INVALID in a scheduler. */
KVC_API int kvc_region_hold(struct kvc_region *region, struct kvc_hold **ret);

/* Any thread, also when region and client are long closed; does nothing in a forked child. NULL is fine;
 * returns NULL. */
KVC_API struct kvc_hold *kvc_hold_release(struct kvc_hold *hold);

/* Since 0.2: capacity, bytes of one page over all segments, and how many those are. */
KVC_API uint64_t kvc_region_pages(const struct kvc_region *region);
KVC_API uint64_t kvc_region_page_bytes(const struct kvc_region *region);
KVC_API uint32_t kvc_region_segments(const struct kvc_region *region);

/* Backs pages with memory, all or none of them. Contents are undefined (zero, or what this trust domain left)
 * without KVC_REGION_ZERO_ON_MAP. Waits for the daemon if its memory has to be made first. KVC_E_MAPPED,
 * KVC_E_LIMIT, KVC_E_BUDGET, KVC_E_DEVICE_MEMORY, KVC_E_FROZEN, KVC_E_DRIVER, KVC_E_NOFILE, KVC_E_TIMEOUT,
 * KVC_E_DISCONNECTED, KVC_E_RESOURCES. KVC_E_INVALID: there is no such page, or a single one takes more
 * extents than the daemon hands out at once. KVC_E_DRIVER, too, for a page that an earlier failure of the
 * driver has left in a state nobody knows: such a page is unusable until its region is closed. */
KVC_API int kvc_region_map(struct kvc_region *region, const uint64_t *pages, size_t n);

/* Takes the pages' memory away, all or none of them. It goes to the caches as far as their bounds allow,
 * while the instance is within its limit and not asked for memory; the rest is with the daemon when the call
 * returns. A cached page may stay accessible until it is reused. KVC_E_NOT_MAPPED, KVC_E_PINNED,
 * KVC_E_DRIVER; KVC_E_DISCONNECTED and KVC_E_TIMEOUT when the daemon has not confirmed what was given back
 * (the pages are unmapped all the same). */
KVC_API int kvc_region_unmap(struct kvc_region *region, const uint64_t *pages, size_t n);

/* Since 0.2. As kvc_region_unmap(), once the GPU has come to `event`: a CUevent of the device's primary
 * context that was recorded before (one that never was counts as come), and not in a stream that is being
 * captured. The pages are the caller's no more when the call returns, and count as mapped until they are
 * unmapped. The event is the caller's again: it may be recorded anew, or destroyed. Nothing waits: the
 * library looks when it maps, unmaps or dispatches, on its own thread or by the host, and without any call
 * nothing is unmapped. (The library's thread wakes up for the daemon, not for an event.) Events are passed in
 * the order of these calls, so one that is late holds up later ones. The library waits for the GPU when the
 * memory or the pages are wanted: in a map that would be refused otherwise, a map of such a page, kvc_trim(),
 * and when the region is closed; other threads can use the client meanwhile. KVC_E_NOT_MAPPED, KVC_E_PINNED,
 * KVC_E_DRIVER, KVC_E_NOMEM; KVC_E_INVALID in a scheduler, too. */
KVC_API int kvc_region_unmap_after(struct kvc_region *region, const uint64_t *pages, size_t n, void *event);

/* Since 0.2. The stream in which pages are cleared from now on; waits until those that the old one clears
 * are. KVC_E_INVALID (in a scheduler, too), KVC_E_DRIVER. */
KVC_API int kvc_region_set_stream(struct kvc_region *region, void *stream);

/* Since 0.2. Pins mapped pages, for as long as their memory is registered with somebody who keeps it whatever
 * is unmapped (RDMA, NIXL, NCCL). Counted: each pin needs its unpin. Until then unmapping is KVC_E_PINNED
 * (KVC_E_WORKER where a scheduler wants it), the pages' memory is not kept for others and never asked back.
 * All or nothing; the region's end ends them. Blocks in pinned pages are allocated and freed as always; a
 * page that has no allocated ones may be on its way out, and is not mapped then. Pages are pinned where they
 * are mapped: KVC_E_INVALID in a scheduler. KVC_E_NOT_MAPPED, KVC_E_INVALID. */
KVC_API int kvc_region_pin(struct kvc_region *region, uint64_t first, uint64_t n);
KVC_API int kvc_region_unpin(struct kvc_region *region, uint64_t first, uint64_t n);

/* Since 0.2. From a model to the shape of a region. */
struct kvc_layout {
    size_t size;         /* sizeof(struct kvc_layout) */
    uint32_t layers;     /* of the model, or of this pipeline stage */
    uint32_t kv_buffers; /* of a layer: 2 where keys and values are apart, else 1 */
    uint64_t page_bytes; /* of a layer and buffer. 0: $KVCACHED_PAGE_SIZE_MB, a multiple of 2, else 2 MiB */

    /* 1: all layers and buffers of a page together, so that mapping it takes few extents; 0: a segment for
     * each. -1: $KVCACHED_CONTIGUOUS_LAYOUT, else together. */
    int contiguous;
};

/* Sets `segments` and `page_bytes` of the options, and nothing else: one segment of pages of layers ×
 * kv_buffers × page_bytes, or so many segments of pages of page_bytes. Any thread. KVC_E_INVALID,
 * KVC_E_ENVIRONMENT. */
KVC_API int kvc_layout_region(const struct kvc_layout *layout, struct kvc_region_options *options);

/* Scheduler and workers in different processes, since 0.2
 *
 * A worker opens its regions with KVC_REGION_ORDERED, and maps nothing in them by itself: kvc_region_map()
 * and kvc_region_unmap() are KVC_E_INVALID. Its library does what the scheduler wants, on its own thread
 * or in kvc_dispatch(), for as long as the region is open; nothing of it is cached. A worker on an event
 * loop must poll, since its scheduler waits. Other calls that wait for the daemon take in the memory that
 * comes with orders, and leave the rest to kvc_dispatch().
 *
 * The scheduler opens a client of each worker's daemon, under the worker's instance name, with
 * KVC_ROLE_SCHEDULER. Such a client has no GPU: its process never loads the driver, and kvc_region_open()
 * is KVC_E_INVALID. What it attaches to can be mapped and unmapped like a region of its own. It has no
 * address (0), and at most 1024 pages are mapped or unmapped by one call.
 *
 * Errors beyond a region's own: KVC_E_WORKER when the worker has done nothing of it (it says why; a page that
 * is mapped already is such a reason); KVC_E_WORKER_GONE when it is gone, or obeys another scheduler;
 * KVC_E_TIMEOUT when it has not answered in time: then it may do so later, and what it does is not undone.
 * The worker of a region is gone when its process or its connection has ended, or it has closed the region.
 * That is for good: who wants to go on closes the region, and attaches to that of another worker. */

/* Finds the region that a worker of this client's instance has opened under the two numbers, and waits for
 * it. `timeout_ms`: for how long; negative: no limit; 0: as the client's. What an earlier scheduler has
 * left mapped there is unmapped first: of several schedulers the last one rules. Closing leaves the
 * worker's pages as they are. KVC_E_TIMEOUT, KVC_E_WORKER, KVC_E_WORKER_GONE; KVC_E_INVALID: the client is no
 * scheduler. */
KVC_API int kvc_region_attach(struct kvc_client *client, uint32_t group, uint32_t rank, int timeout_ms,
                              struct kvc_region **ret);

/* ---- Reservations (since 0.2) ----
 *
 * Who wakes a model that sleeps has memory promised to it before: a controller opens a client under the name
 * of the model's instance, with KVC_ROLE_CONTROLLER. It opens no instance by that: whoever of the trust
 * domain opens it later, or has before, finds the promise, and the controller's gpu_utilization means
 * nothing. Such a client has no GPU: its process never loads the driver, and kvc_region_open() is
 * KVC_E_INVALID. It needs no dispatching. */

/* Reserves `bytes` of the daemon's budget for what the instance asks for from now on, and `foreign_bytes` of
 * the device for what its engines take from the driver by themselves, such as weights: both, or nothing. It
 * is held until kvc_release(), kvc_close() or the end of the process. One at a time.
 *
 * Nobody else finds room in `bytes`; what the instance is granted comes out of it, as long as there is some,
 * and is not reserved again when it is returned. The budget is lower by `foreign_bytes` from then on; whose
 * memory it is that comes the daemon cannot tell, so other programs that take some use it up. A limit that is
 * lowered later is not lifted by it.
 *
 * Waits like kvc_region_map(), others being asked to give back what they don't use. `timeout_ms`: for how
 * long; negative: no limit; 0: as the client's. KVC_E_LIMIT (of `bytes`), KVC_E_BUDGET, KVC_E_FROZEN,
 * KVC_E_DEVICE_MEMORY: what is foreign has not come free in time. KVC_E_TIMEOUT, KVC_E_INTERRUPTED: what is
 * promised later is released. KVC_E_INVALID: both are 0, something is reserved already, or the client is no
 * controller. */
KVC_API int kvc_reserve(struct kvc_client *client, uint64_t bytes, uint64_t foreign_bytes, int timeout_ms);

/* What was not used is free for others when it returns. KVC_E_INVALID: nothing is reserved. KVC_E_TIMEOUT,
 * KVC_E_DISCONNECTED: it will be, or is. */
KVC_API int kvc_release(struct kvc_client *client);

/* ---- Blocks (since 0.2) ----
 *
 * A kvc_blocks hands out the KV blocks that lie in a region's pages, and maps and unmaps the pages as needed.
 * Block b lies at byte b × block_bytes of each segment; a block that would lie in two pages is never handed
 * out. Blocks have numbers from 0 on. Of further regions only the pages count: page i is mapped there when
 * blocks of page i are handed out, and what lies where in it is the engine's affair.
 *
 * Until it is closed the region's pages are the kvc_blocks': kvc_region_map(), kvc_region_unmap() and
 * kvc_region_unmap_after() return KVC_E_INVALID. Close it before its regions; closing one of them, or the
 * client of one, closes it too: from then on there is no such handle, and the pages of its other regions are
 * the host's again, unmapped.
 *
 * Threads: all functions, from any. On pages that are mapped, alloc and free send nothing, cost the same
 * however many pages there are, and make no system call, except that the library's thread is woken when free
 * pages are used up. While one call waits for the daemon others run.
 *
 * Bounds, `report_ms` and the timeout of kvc_blocks_want() are those of the first region's client.
 *
 * Promises: see kvc_blocks_available().
 *
 * Workers elsewhere: a page of which some worker has not answered in time is in doubt: no block of it is
 * handed out before the worker answers, or is known to be gone. A worker that is gone takes its share of
 * every page along. That is noticed when its daemon answers an order; from then on there is nothing to be had
 * any more: none are available, and alloc, reserve and want are KVC_E_WORKER_GONE. All else works, and what
 * comes free is given back by the other workers at once, the rest when the kvc_blocks is closed. To go on,
 * close it, and attach again. When only the connection to a daemon has ended nobody knows of its worker:
 * mapped pages stay in use, and mapping more is KVC_E_DISCONNECTED.
 */

struct kvc_blocks;

/* Zero-initialise, set `size`, set what is needed. */
struct kvc_blocks_options {
    size_t size; /* sizeof(struct kvc_blocks_options) */

    uint64_t block_bytes; /* of a block in one segment of the first region; at most a page's share there */
    int null_block;       /* not 0: block 0 is never handed out, and always mapped: padding points at it */
    uint64_t max_pages;  /* of the region that may be used, the first ones; 0: all. See kvc_blocks_resize() */
    uint64_t max_blocks; /* from this number on there are none, also where the last page has room; 0: all */
};

/* With several regions, page i of each is mapped and unmapped together with page i of the others: all or none
 * of them. They may be different clients', and have different page sizes, but the same number of pages. They
 * are all this process', or all workers' that were attached to (where a worker that does not answer, or
 * cannot undo, leaves a page in doubt: unusable until that is known). Nothing may be mapped in them, and none
 * may be a KVC_REGION_ORDERED one; what their caches hold goes back to the daemon. KVC_E_INVALID,
 * KVC_E_NOMEM, KVC_E_DRIVER; with `null_block` what kvc_blocks_alloc() returns. */
KVC_API int kvc_blocks_open(struct kvc_region *const *regions, size_t n_regions,
                            const struct kvc_blocks_options *options, struct kvc_blocks **ret);

/* Unmaps all pages, used or not, and gives their memory back; those that are pinned stay mapped, the host's.
 * What else cannot be unmapped (a driver that fails, a worker that does not answer) stays until its region is
 * closed, and the log is told. NULL is fine; returns NULL. */
KVC_API struct kvc_blocks *kvc_blocks_close(struct kvc_blocks *blocks);

/* Takes n blocks, all or none: from mapped pages, those that are used most first; else pages are mapped, and
 * the call waits for the daemon. KVC_E_NO_BLOCKS: there are not so many in all pages that may be used.
 * KVC_E_LIMIT, KVC_E_BUDGET, ...: as kvc_region_map(), and only after what this client keeps elsewhere
 * without need was given up for it, and the daemon has refused all the same. KVC_E_RESOURCES and
 * KVC_E_INVALID only where a single page cannot be had. With workers elsewhere also KVC_E_WORKER,
 * KVC_E_WORKER_GONE, and KVC_E_IN_DOUBT where there would be enough blocks but for what is in doubt. */
KVC_API int kvc_blocks_alloc(struct kvc_blocks *blocks, size_t n, uint32_t *ret_ids);

/* Gives blocks back, all or none, in any order. They can be handed out again at once. Their pages are not
 * unmapped before kvc_blocks_complete() has said that `epoch` is complete; 0: they may be at any time. When
 * more free pages are mapped than max_reserved_pages, or the instance is asked for memory, they are unmapped
 * by this call, which then waits for the daemon, if no report holds that counts on them. KVC_E_NOT_ALLOCATED:
 * one is not allocated, named twice, or no block. */
KVC_API int kvc_blocks_free(struct kvc_blocks *blocks, const uint32_t *ids, size_t n, uint64_t epoch);

/* For callers that must not wait, such as those that hold an interpreter's lock. The first is as
 * kvc_blocks_alloc(), but of mapped pages only: KVC_E_NO_BLOCKS where they have not so many. The second is as
 * kvc_blocks_free(), but unmaps nothing: *ret_untidy says whether there may be
 * something to unmap, which kvc_blocks_tidy() then does, and waits for the daemon. */
KVC_API int kvc_blocks_try_alloc(struct kvc_blocks *blocks, size_t n, uint32_t *ret_ids);
KVC_API int kvc_blocks_try_free(struct kvc_blocks *blocks, const uint32_t *ids, size_t n, uint64_t epoch,
                                int *ret_untidy);
KVC_API int kvc_blocks_tidy(struct kvc_blocks *blocks);

/* The GPU no longer uses what was freed with this epoch or a lower one, on any stream and rank. Epochs are
 * the engine's own numbers, above 0, and only grow: a lower one than before changes nothing. Pages may be
 * unmapped, as by kvc_blocks_free(); so they may by release, resize and clear. */
KVC_API int kvc_blocks_complete(struct kvc_blocks *blocks, uint64_t epoch);

/* How many blocks kvc_blocks_alloc() can have now: the free ones in mapped pages, and those of pages whose
 * memory the daemon has set aside for this region. It is a promise: for `report_ms` (of kvc_options) neither
 * the daemon nor the library takes them for anything else, so that a scheduler's step can rely on it; what is
 * allocated meanwhile is taken off. Another engine's promises are never counted. While the daemon asks for
 * memory back only what is certain to stay is counted; once the library has noticed that a connection has
 * ended, only what is mapped. More may be had: see kvc_blocks_want(). 0 where the handle is no good. Takes
 * nanoseconds, and waits for neither daemon nor GPU. */
KVC_API uint64_t kvc_blocks_available(struct kvc_blocks *blocks);

/* Sees to it that n blocks are available. `timeout_ms` 0: asks, and a later kvc_blocks_available() finds
 * them; above 0: waits that long for the daemon's answer; below: as long as the client's timeout. Where there
 * are no leases (the daemon is older than 0.2; or, over one region of this process, preallocation is off), or
 * none for so much (the extents of a page are many, the daemon's descriptors few), pages are mapped in place
 * of being set aside, and who waits does so as in kvc_blocks_alloc(), whatever `timeout_ms`. With 0 a later
 * call maps them, after the daemon has said so; over several regions, or workers', this one does.
 * *ret_available (may be NULL) is as kvc_blocks_available(), after a failure too. KVC_E_NO_BLOCKS,
 * KVC_E_LIMIT, KVC_E_BUDGET, ...: as kvc_blocks_alloc(). KVC_E_TIMEOUT: the daemon has not answered yet. */
KVC_API int kvc_blocks_want(struct kvc_blocks *blocks, uint64_t n, int timeout_ms, uint64_t *ret_available);

/* Sets n more free blocks aside, mapping pages as kvc_blocks_alloc() does: the next allocations take them
 * first, and until then no page is unmapped that they would need. kvc_blocks_release() gives all that up. */
KVC_API int kvc_blocks_reserve(struct kvc_blocks *blocks, size_t n);
KVC_API int kvc_blocks_release(struct kvc_blocks *blocks);

/* Unmaps all free pages that are not reserved, pinned or waiting for an epoch, and gives what is set aside
 * back. Nothing is prepared before the engine uses another page. */
KVC_API int kvc_blocks_trim(struct kvc_blocks *blocks);

/* Only the first `pages` may be used from now on; more than the region's means all. What is allocated beyond
 * stays so until it is freed; then its pages are unmapped at once. */
KVC_API int kvc_blocks_resize(struct kvc_blocks *blocks, uint64_t pages);

/* Frees all blocks, with epoch 0, and what is reserved. */
KVC_API int kvc_blocks_clear(struct kvc_blocks *blocks);

/* How many blocks of each page are allocated. KVC_E_INVALID: no such page. */
KVC_API int kvc_blocks_occupancy(struct kvc_blocks *blocks, const uint64_t *pages, size_t n,
                                 uint32_t *ret_used);

/* For an engine that evicts: the pages that would come free, fewest allocated blocks first, at most `max`.
 * *ret_n: how many were written. */
struct kvc_page_census {
    uint64_t page;
    uint32_t used; /* blocks that are allocated, at least one */
};
KVC_API int kvc_blocks_census(struct kvc_blocks *blocks, struct kvc_page_census *ret, size_t max,
                              size_t *ret_n);

/* The page in which a block begins; the number of pages for what is no block of the region, UINT64_MAX where
 * the handle is no good. */
KVC_API uint64_t kvc_blocks_page_of(const struct kvc_blocks *blocks, uint32_t id);

struct kvc_blocks_status {
    size_t size;              /* set by the caller: sizeof(struct kvc_blocks_status) */
    uint64_t total_blocks;    /* in all pages that may be used, mapped or not */
    uint64_t used_blocks;     /* allocated */
    uint64_t free_blocks;     /* in mapped pages, reserved ones included */
    uint64_t reserved_blocks; /* see kvc_blocks_reserve() */
    uint64_t claimed_pages;   /* set aside by the daemon, and promised; of several regions: to each */
    uint64_t offered_pages;   /* set aside by the daemon, and not claimed yet; likewise */
    uint64_t mapped_pages;    /* the sum of free, partly used and full ones, and those beyond a resize */
    uint64_t free_pages;
    uint64_t partly_pages;
    uint64_t full_pages;
    uint64_t waiting_pages; /* free, and their epoch is not complete */
    uint64_t pinned_pages;
    uint64_t empty_pages;  /* that may be mapped */
    uint64_t doubt_pages;  /* a worker has not answered about them */
    uint64_t broken_pages; /* unusable: the driver failed on them */
    uint64_t page_blocks;  /* of a page; where blocks lie across, some pages have one less */
    uint64_t mapped_total; /* pages mapped so far ... */
    uint64_t ready_total;  /* ... of them in the background, before they were needed */
    uint64_t unmapped_total;
    uint64_t waited_total;  /* calls of alloc and reserve that had to map pages */
    uint64_t refused_total; /* ... and were refused */
};
KVC_API int kvc_blocks_status(struct kvc_blocks *blocks, struct kvc_blocks_status *ret);

#ifdef __cplusplus
}
#endif

#endif
