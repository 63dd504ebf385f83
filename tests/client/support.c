/* SPDX-License-Identifier: Apache-2.0 */
#include "support.h"

#include <dirent.h>
#include <dlfcn.h>
#include <poll.h>
#include <stdio.h>

struct kvc_options plain_options(struct fake *fake)
{
    return (struct kvc_options){
        .size = sizeof(struct kvc_options),
        .socket = fake_socket(fake),
        .instance = "test",
        .timeout_ms = 20000,
    };
}

struct kvc_client *open_plain(struct fake *fake)
{
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client;

    check_ok(kvc_open(&options, &client));
    return client;
}

struct kvc_client *open_caching(struct fake *fake, int min, int max, uint64_t max_bytes)
{
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client;

    options.min_reserved_pages = min;
    options.max_reserved_pages = max;
    options.max_reserved_bytes = max_bytes;
    check_ok(kvc_open(&options, &client));
    return client;
}

struct kvc_region *open_region(struct kvc_client *client, unsigned segments, uint64_t page_bytes,
                               uint64_t pages)
{
    struct kvc_region_options options = {
        .size = sizeof(options), .segments = segments, .page_bytes = page_bytes, .pages = pages};
    struct kvc_region *region;

    check_ok(kvc_region_open(client, &options, &region));
    return region;
}

static int for_range(int (*call)(struct kvc_region *, const uint64_t *, size_t), struct kvc_region *region,
                     uint64_t first, size_t n)
{
    uint64_t *pages = calloc(n, sizeof(*pages));
    int r;

    for (size_t i = 0; i < n; i++)
        pages[i] = first + i;
    r = call(region, pages, n);
    free(pages);
    return r;
}

int map_range(struct kvc_region *region, uint64_t first, size_t n)
{
    return for_range(kvc_region_map, region, first, n);
}

int unmap_range(struct kvc_region *region, uint64_t first, size_t n)
{
    return for_range(kvc_region_unmap, region, first, n);
}

struct emulator *emulator_open(struct kvc_client *client)
{
    struct emulator *emulator = calloc(1, sizeof(*emulator));
    char error[CUDA_DRIVER_ERROR_MAX];
    struct kvc_device device = {.size = sizeof(device)};

    emulator->library = dlopen(kvc_driver_path(client), RTLD_NOW | RTLD_NOLOAD);
    check(emulator->library);
    emulator->stats = (__typeof__(emulator->stats))dlsym(emulator->library, "cuemuGetStats");
    emulator->calls = (__typeof__(emulator->calls))dlsym(emulator->library, "cuemuGetCalls");
    check(emulator->stats && emulator->calls);
    if (cuda_driver_load(kvc_driver_path(client), &emulator->driver, error) < 0)
        test_fail(__FILE__, __LINE__, "%s", error);
    check_ok(kvc_device(client, &device));
    check_eq(emulator->driver->cuDevicePrimaryCtxRetain(&emulator->context, device.ordinal), CUDA_SUCCESS);
    check_eq(emulator->driver->cuCtxSetCurrent(emulator->context), CUDA_SUCCESS);
    return emulator;
}

struct emulator *emulator_close(struct emulator *emulator)
{
    CUdevice device;

    check_eq(emulator->driver->cuCtxGetDevice(&device), CUDA_SUCCESS);
    check_eq(emulator->driver->cuCtxSetCurrent(NULL), CUDA_SUCCESS);
    check_eq(emulator->driver->cuDevicePrimaryCtxRelease(device), CUDA_SUCCESS);
    cuda_driver_unload(emulator->driver);
    dlclose(emulator->library);
    free(emulator);
    return NULL;
}

void emulate_costs(const char *costs)
{
    char path[256];
    FILE *file;

    snprintf(path, sizeof(path), "%s/costs", test_folder());
    file = fopen(path, "we");
    check(file && fputs(costs, file) >= 0 && fclose(file) == 0);
    check_eq(setenv("KVCACHED_EMULATE_COSTS", path, 1), 0);
}

static CUdeviceptr word(struct kvc_region *region, uint64_t page_bytes, unsigned segment, uint64_t page,
                        bool last)
{
    return kvc_region_address(region) + segment * kvc_region_stride(region) + page * page_bytes +
           (last ? page_bytes - 4 : 0);
}

void stamp(struct emulator *emulator, struct kvc_region *region, uint64_t page_bytes, unsigned segment,
           uint64_t page, uint32_t value)
{
    for (int last = 0; last < 2; last++)
        check_eq(emulator->driver->cuMemsetD32(word(region, page_bytes, segment, page, last), value, 1),
                 CUDA_SUCCESS);
}

void check_stamp(struct emulator *emulator, struct kvc_region *region, uint64_t page_bytes, unsigned segment,
                 uint64_t page, uint32_t value)
{
    for (int last = 0; last < 2; last++) {
        uint32_t found = 0;

        check_eq(emulator->driver->cuMemcpyDtoH(&found, word(region, page_bytes, segment, page, last), 4),
                 CUDA_SUCCESS);
        check_eq(found, value);
    }
}

uint64_t lent_bytes(struct fake *fake)
{
    return fake_count(fake).bytes;
}

void dispatch_once(struct kvc_client *client)
{
    struct pollfd pfd = {.fd = kvc_get_fd(client), .events = (short)kvc_get_events(client)};

    poll(&pfd, 1, kvc_get_timeout(client));
    check_ok(kvc_dispatch(client));
}

/* How often the library's own thread has gone to sleep or been woken, and what it does now. */
static unsigned long look_at_own_thread(char *ret_state)
{
    char path[280], line[128];
    unsigned long sum = 0, n;
    DIR *dir = opendir("/proc/self/task");
    bool ours = false;
    FILE *file;

    check(dir);
    for (struct dirent *entry; !ours && (entry = readdir(dir));) {
        snprintf(path, sizeof(path), "/proc/self/task/%s/status", entry->d_name);
        file = fopen(path, "re");
        for (sum = 0; file && fgets(line, sizeof(line), file);) {
            ours |= strcmp(line, "Name:\tkvclient\n") == 0;
            sscanf(line, "State: %c", ret_state);
            if (sscanf(line, "voluntary_ctxt_switches: %lu", &n) == 1 ||
                sscanf(line, "nonvoluntary_ctxt_switches: %lu", &n) == 1)
                sum += n;
        }
        if (file)
            fclose(file);
    }
    closedir(dir);
    check(ours && sum > 0);
    return sum;
}

unsigned long own_thread_switches(void)
{
    char state;

    return look_at_own_thread(&state);
}

/* Nobody announces rest: whoever did would disturb it. */
unsigned long own_thread_at_rest(void)
{
    unsigned long before, after;
    char state = 0;

    do {
        before = look_at_own_thread(&state);
        poll(NULL, 0, 20);
        after = look_at_own_thread(&state);
    } while (state != 'S' || after != before);
    return after;
}
