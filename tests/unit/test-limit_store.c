/* SPDX-License-Identifier: Apache-2.0 */
#include "limit_store.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "test.h"

static char dir[] = "/tmp/kvcached-limits-XXXXXX";
static char state[64], file[80];

static void make_dir(void)
{
    check(mkdtemp(dir) != NULL);
    snprintf(state, sizeof(state), "%s/GPU-1", dir);
    snprintf(file, sizeof(file), "%s/limits.json", state);
}

static void remove_dir(void)
{
    unlink(file);
    rmdir(state);
    check_eq(rmdir(dir), 0);
}

static struct limit_store *load(void)
{
    char error[LIMIT_STORE_ERROR_MAX] = "";
    struct limit_store *store;

    if (limit_store_load(state, &store, error) != 0)
        test_fail(__FILE__, __LINE__, "%s", error);
    return store;
}

static void change(struct limit_store *store, const char *domain, const char *instance, uint64_t bytes,
                   uint32_t ppm)
{
    struct limit limit = {.bytes = bytes, .ppm = ppm};
    char error[LIMIT_STORE_ERROR_MAX] = "";

    if (limit_store_change(store, domain, instance, &limit, error) != 0)
        test_fail(__FILE__, __LINE__, "%s", error);
}

static void write_file(const char *text)
{
    FILE *f;

    mkdir(state, 0755);
    f = fopen(file, "we");
    check(f != NULL);
    check(fputs(text, f) >= 0);
    check_eq(fclose(f), 0);
}

TEST(survive)
{
    struct limit_store *store;

    make_dir();
    store = load();
    change(store, "uid:1000", "llama", 8 * GIB, 0);
    change(store, "uid:7@/a/\"b\\", "qwen", UINT64_MAX, 250000);
    change(store, "uid:1000", "zero", 0, 0);
    change(store, "uid:1000", "llama", LIMIT_BYTES_MAX, 0);
    limit_store_free(store);

    store = load();
    check(limit_store_find(store, "uid:1000", "llama")->bytes == LIMIT_BYTES_MAX);
    check_eq(limit_bytes(limit_store_find(store, "uid:7@/a/\"b\\", "qwen"), 4000), 1000);
    check_eq(limit_store_find(store, "uid:1000", "zero")->bytes, 0);
    check(!limit_store_find(store, "uid:1001", "llama"));
    limit_store_free(store);
    remove_dir();
}

TEST(forgotten)
{
    char error[LIMIT_STORE_ERROR_MAX];
    struct limit_store *store;

    make_dir();
    store = load();
    check_eq(limit_store_change(store, "d", "i", NULL, error), 0);
    check(access(file, F_OK) < 0);
    change(store, "d", "i", 1, 0);
    check_eq(limit_store_change(store, "d", "i", NULL, error), 0);
    check(!limit_store_find(store, "d", "i"));
    limit_store_free(store);
    store = load();
    check(!limit_store_find(store, "d", "i"));
    limit_store_free(store);
    remove_dir();
}

/* A file that cannot grow stands for a full disk. */
TEST(full_disk_changes_nothing)
{
    struct rlimit before, none = {0};
    struct limit limit = {.bytes = 5};
    char error[LIMIT_STORE_ERROR_MAX] = "";
    struct limit_store *store;

    make_dir();
    store = load();
    change(store, "d", "a", 1, 0);
    change(store, "d", "b", 2, 0);

    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    none.rlim_max = before.rlim_max;
    setrlimit(RLIMIT_FSIZE, &none);
    check_eq(limit_store_change(store, "d", "a", &limit, error), -EFBIG);
    check_eq(limit_store_change(store, "d", "a", NULL, error), -EFBIG);
    check_eq(limit_store_change(store, "d", "c", &limit, error), -EFBIG);
    setrlimit(RLIMIT_FSIZE, &before);
    check(strstr(error, state) != NULL);

    check_eq(limit_store_find(store, "d", "a")->bytes, 1);
    check(!limit_store_find(store, "d", "c"));
    limit_store_free(store);
    store = load();
    check_eq(limit_store_find(store, "d", "a")->bytes, 1);
    check_eq(limit_store_find(store, "d", "b")->bytes, 2);
    limit_store_free(store);
    remove_dir();
}

TEST(broken_files_are_refused)
{
    static const char *const broken[] = {
        "",
        "{",
        "[]",
        "{\"version\": 2, \"limits\": []}",
        "{\"version\": 1}",
        "{\"version\": 1, \"limits\": [1]}",
        "{\"version\": 1, \"limits\": [{\"domain\": \"d\", \"instance\": \"i\"}]}",
        "{\"version\": 1, \"limits\": [{\"domain\": \"\", \"instance\": \"i\", \"bytes\": 1}]}",
        "{\"version\": 1, \"limits\": [{\"domain\": \"d\", \"instance\": \"i\", \"bytes\": -1}]}",
        "{\"version\": 1, \"limits\": [{\"domain\": \"d\", \"instance\": \"i\", \"bytes\": 1.5}]}",
        "{\"version\": 1, \"limits\": [{\"domain\": \"d\", \"instance\": \"i\", \"bytes\": 1e300}]}",
        "{\"version\": 1, \"limits\": [{\"domain\": \"d\", \"instance\": \"i\", \"ppm\": 1000001}]}",
        ("{\"version\": 1, \"limits\": [{\"domain\": \"d\", \"instance\": \"i\", \"bytes\": 1},"
         " {\"domain\": \"d\", \"instance\": \"i\", \"bytes\": 2}]}"),
    };
    char error[LIMIT_STORE_ERROR_MAX];
    struct limit_store *store = NULL;

    make_dir();
    for (size_t i = 0; i < ARRAY_SIZE(broken); i++) {
        write_file(broken[i]);
        if (limit_store_load(state, &store, error) != -EINVAL || store || !strstr(error, file))
            test_fail(__FILE__, __LINE__, "accepted, or not named: %s", broken[i]);
    }
    remove_dir();
}
