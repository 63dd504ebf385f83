/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The library as it is built, loaded and unloaded as a plug-in: it finds the emulator beside itself, keeps no
 * thread, and leaves nothing that would run after it is gone.
 */

#include <dirent.h>
#include <dlfcn.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "fakedaemon.h"
#include "kvclient.h"
#include "test.h"

struct library {
    void *handle;
    __typeof__(&kvc_open) open;
    __typeof__(&kvc_close) close;
    __typeof__(&kvc_region_open) region_open;
    __typeof__(&kvc_region_map) region_map;
    __typeof__(&kvc_status) status;
    __typeof__(&kvc_version) version;
};

static struct library load(void)
{
    struct library l = {.handle = dlopen(KVCLIENT_LIBRARY, RTLD_NOW | RTLD_LOCAL)};

    if (!l.handle)
        test_fail(__FILE__, __LINE__, "%s", dlerror());
    l.open = (__typeof__(l.open))dlsym(l.handle, "kvc_open");
    l.close = (__typeof__(l.close))dlsym(l.handle, "kvc_close");
    l.region_open = (__typeof__(l.region_open))dlsym(l.handle, "kvc_region_open");
    l.region_map = (__typeof__(l.region_map))dlsym(l.handle, "kvc_region_map");
    l.status = (__typeof__(l.status))dlsym(l.handle, "kvc_status");
    l.version = (__typeof__(l.version))dlvsym(l.handle, "kvc_version", "KVCLIENT_0");
    check(l.open && l.close && l.region_open && l.region_map && l.status && l.version);
    return l;
}

/* Threads of the library's; a sanitizer may have its own. */
static unsigned count_threads(void)
{
    DIR *dir = opendir("/proc/self/task");
    char path[280], name[32];
    unsigned n = 0;

    check(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        FILE *file;

        snprintf(path, sizeof(path), "/proc/self/task/%s/comm", entry->d_name);
        file = fopen(path, "re");
        n += file && fgets(name, sizeof(name), file) && strcmp(name, "kvclient\n") == 0;
        if (file)
            fclose(file);
    }
    closedir(dir);
    return n;
}

static void use(struct library *l, struct fake *fake)
{
    struct kvc_options options = {
        .size = sizeof(options),
        .socket = fake_socket(fake),
        .own_thread = 1,
        .min_reserved_pages = 2,
        .max_reserved_pages = 4,
    };
    struct kvc_region_options region_options = {
        .size = sizeof(region_options), .page_bytes = 2 * MIB, .pages = 9};
    struct kvc_status status = {.size = sizeof(status)};
    const uint64_t page = 3;
    struct kvc_client *client;
    struct kvc_region *region;

    check_eq(l->open(&options, &client), 0);
    check_eq(l->region_open(client, &region_options, &region), 0);
    check_eq(l->region_map(region, &page, 1), 0);
    check_eq(count_threads(), 1);
    while (status.cached_bytes == 0) {
        check_eq(l->status(client, &status), 0);
        poll(NULL, 0, 1);
    }
    check(!l->close(client));
}

static bool is_loaded(void)
{
    void *handle = dlopen(KVCLIENT_LIBRARY, RTLD_NOW | RTLD_NOLOAD);

    if (handle)
        dlclose(handle);
    return handle;
}

TEST(load_use_unload)
{
    struct fake *fake = fake_start(NULL);

    unsetenv("KVCACHED_EMULATOR_DIR");
    for (int i = 0; i < 3; i++) {
        struct library library = load();

        check_str(library.version(), KVCACHED_VERSION);
        use(&library, fake);
        check_eq(dlclose(library.handle), 0);
        check(!is_loaded());
        /* A thread that has been joined may still be seen on its way out. */
        while (count_threads() > 0)
            poll(NULL, 0, 1);
        check_eq(fake_count(fake).extents, 0);
    }
    fake_stop(fake);
}
