/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The list and its file:
 *
 *     {"version": 1, "limits": [{"domain": "uid:1000", "instance": "llama", "bytes": 8589934592},
 *                               {"domain": "tenant-a", "instance": "qwen", "ppm": 250000}]}
 *
 * A change is written and made durable first, and takes effect in memory only then. A file that cannot be
 * understood is an error at start rather than an empty list, because the next change would overwrite it.
 */

#include "limit_store.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config.h"
#include "places.h"

#define FILE_NAME "limits.json"
#define FILE_MAX (16 * 1024 * 1024)
#define PPM_ONE 1000000

static cJSON *json_free(cJSON *json)
{
    cJSON_Delete(json);
    return NULL;
}
DEFINE_CLEANUP(cJSON *, json_free);

static int __attribute__((format(printf, 3, 4))) fail(char *error, int r, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(error, LIMIT_STORE_ERROR_MAX, format, args);
    va_end(args);
    return r;
}

uint64_t limit_bytes(const struct limit *limit, uint64_t total_bytes)
{
    return limit->bytes != UINT64_MAX ? limit->bytes : config_part(total_bytes, limit->ppm);
}

/* ---- The list ---- */

static struct limit_entry *find_entry(const struct limit_store *store, const char *domain,
                                      const char *instance)
{
    list_for_each (it, &store->entries) {
        struct limit_entry *entry = container_of(it, struct limit_entry, link);

        if (strcmp(entry->domain, domain) == 0 && strcmp(entry->instance, instance) == 0)
            return entry;
    }
    return NULL;
}

const struct limit *limit_store_find(const struct limit_store *store, const char *domain,
                                     const char *instance)
{
    const struct limit_entry *entry = find_entry(store, domain, instance);

    return entry ? &entry->limit : NULL;
}

static struct limit_entry *entry_new(const char *domain, const char *instance, const struct limit *limit)
{
    struct limit_entry *entry = calloc(1, sizeof(*entry));

    if (!entry)
        return NULL;
    list_init(&entry->link);
    snprintf(entry->domain, sizeof(entry->domain), "%s", domain);
    snprintf(entry->instance, sizeof(entry->instance), "%s", instance);
    entry->limit = *limit;
    return entry;
}

static struct limit_entry *entry_free(struct limit_entry *entry)
{
    if (entry)
        list_unlink(&entry->link);
    free(entry);
    return NULL;
}
DEFINE_CLEANUP(struct limit_entry *, entry_free);

struct limit_store *limit_store_free(struct limit_store *store)
{
    if (!store)
        return NULL;
    list_for_each_safe (it, &store->entries)
        entry_free(container_of(it, struct limit_entry, link));
    free(store->dir);
    free(store);
    return NULL;
}

/* ---- Reading ---- */

/* A whole number of 0 to max. */
static bool read_number(const cJSON *item, uint64_t max, uint64_t *ret)
{
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0) || item->valuedouble > (double)max ||
        item->valuedouble != (double)(uint64_t)item->valuedouble)
        return false;
    *ret = (uint64_t)item->valuedouble;
    return true;
}

static bool read_string(const cJSON *item, size_t max, const char **ret)
{
    const char *text = cJSON_GetStringValue(item);

    if (!text || !*text || strlen(text) > max)
        return false;
    *ret = text;
    return true;
}

static int read_entry(struct limit_store *store, const cJSON *item)
{
    struct limit limit = {.bytes = UINT64_MAX};
    const char *domain, *instance;
    struct limit_entry *entry;
    uint64_t number;

    if (!read_string(cJSON_GetObjectItemCaseSensitive(item, "domain"), BROKER_DOMAIN_MAX, &domain) ||
        !read_string(cJSON_GetObjectItemCaseSensitive(item, "instance"), BROKER_NAME_MAX, &instance))
        return -EINVAL;
    if (read_number(cJSON_GetObjectItemCaseSensitive(item, "ppm"), PPM_ONE, &number))
        limit.ppm = (uint32_t)number;
    else if (read_number(cJSON_GetObjectItemCaseSensitive(item, "bytes"), LIMIT_BYTES_MAX, &number))
        limit.bytes = number;
    else
        return -EINVAL;
    if (find_entry(store, domain, instance))
        return -EINVAL;
    entry = entry_new(domain, instance, &limit);
    if (!entry)
        return -ENOMEM;
    list_append(&store->entries, &entry->link);
    return 0;
}

static int read_all(struct limit_store *store, const char *text)
{
    _cleanup_(json_freep) cJSON *json = cJSON_Parse(text);
    const cJSON *items = cJSON_GetObjectItemCaseSensitive(json, "limits");
    uint64_t version;

    if (!read_number(cJSON_GetObjectItemCaseSensitive(json, "version"), 1, &version) || version != 1 ||
        !cJSON_IsArray(items))
        return -EINVAL;
    for (const cJSON *item = items->child; item; item = item->next) {
        int r = read_entry(store, item);

        if (r < 0)
            return r;
    }
    return 0;
}

static int read_text(const char *path, char **ret)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    _cleanup_free_ char *text = NULL;
    size_t size = 0;
    struct stat st;
    ssize_t n;

    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || st.st_size > FILE_MAX)
        return -EINVAL;
    text = malloc((size_t)st.st_size + 1);
    if (!text)
        return -ENOMEM;
    while ((n = read(fd, text + size, (size_t)st.st_size - size)) > 0)
        size += (size_t)n;
    if (n < 0)
        return -errno;
    text[size] = '\0';
    *ret = steal_pointer(text);
    return 0;
}

int limit_store_load(const char *dir, struct limit_store **ret, char error[static LIMIT_STORE_ERROR_MAX])
{
    _cleanup_(limit_store_freep) struct limit_store *store = calloc(1, sizeof(*store));
    _cleanup_free_ char *text = NULL;
    char path[PATH_MAX];
    int r;

    if (!store)
        return fail(error, -ENOMEM, "Out of memory");
    list_init(&store->entries);
    store->dir = strdup(dir);
    if (!store->dir)
        return fail(error, -ENOMEM, "Out of memory");
    if (snprintf(path, sizeof(path), "%s/" FILE_NAME, dir) >= (int)sizeof(path))
        return fail(error, -ENAMETOOLONG, "The state directory has too long a name");
    r = read_text(path, &text);
    if (r == 0)
        r = read_all(store, text);
    if (r == -EINVAL)
        return fail(error, r, "%s is not a list of limits; repair or remove it", path);
    if (r < 0 && r != -ENOENT)
        return fail(error, r, "Cannot read %s: %s", path, strerror(-r));
    *ret = steal_pointer(store);
    return 0;
}

/* ---- Writing ---- */

static bool add_entry(cJSON *items, const struct limit_entry *entry)
{
    cJSON *item = cJSON_CreateObject();
    char bytes[24];

    if (!cJSON_AddItemToArray(items, item)) {
        cJSON_Delete(item);
        return false;
    }
    if (!cJSON_AddStringToObject(item, "domain", entry->domain) ||
        !cJSON_AddStringToObject(item, "instance", entry->instance))
        return false;
    if (entry->limit.bytes == UINT64_MAX)
        return cJSON_AddNumberToObject(item, "ppm", entry->limit.ppm);
    snprintf(bytes, sizeof(bytes), "%" PRIu64,
             entry->limit.bytes); /* cJSON's own way rounds the last digit */
    return cJSON_AddRawToObject(item, "bytes", bytes);
}

static char *print_all(const struct limit_store *store)
{
    _cleanup_(json_freep) cJSON *json = cJSON_CreateObject();
    cJSON *items;

    if (!cJSON_AddNumberToObject(json, "version", 1))
        return NULL;
    items = cJSON_AddArrayToObject(json, "limits");
    if (!items)
        return NULL;
    list_for_each (it, &store->entries) {
        if (!add_entry(items, container_of(it, struct limit_entry, link)))
            return NULL;
    }
    return cJSON_Print(json);
}

static int write_fully(int fd, const char *text)
{
    for (size_t left = strlen(text); left > 0;) {
        ssize_t n = write(fd, text, left);

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0) {
            text += n;
            left -= (size_t)n;
        }
    }
    return fsync(fd) < 0 ? -errno : 0;
}

static int replace_file(int dir, const char *text)
{
    static const char temporary[] = FILE_NAME ".new";
    _cleanup_close_ int fd =
        openat(dir, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    int r;

    if (fd < 0)
        return -errno;
    r = write_fully(fd, text);
    if (r == 0 && renameat(dir, temporary, dir, FILE_NAME) < 0)
        r = -errno;
    if (r < 0)
        unlinkat(dir, temporary, 0);
    else if (fsync(dir) < 0)
        r = -errno;
    return r;
}

static int save(const struct limit_store *store, char *error)
{
    _cleanup_free_ char *text = print_all(store);
    _cleanup_close_ int dir = -1;
    int r;

    if (!text)
        return fail(error, -ENOMEM, "Out of memory");
    r = places_make_dir(store->dir);
    if (r == 0) {
        dir = open(store->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        r = dir < 0 ? -errno : replace_file(dir, text);
    }
    if (r < 0)
        return fail(error, r, "The limit cannot be kept in %s: %s", store->dir, strerror(-r));
    return 0;
}

static int add_limit(struct limit_store *store, const char *domain, const char *instance,
                     const struct limit *limit, char *error)
{
    _cleanup_(entry_freep) struct limit_entry *entry = entry_new(domain, instance, limit);
    int r;

    if (!entry)
        return fail(error, -ENOMEM, "Out of memory");
    list_append(&store->entries, &entry->link);
    r = save(store, error);
    if (r == 0)
        steal_pointer(entry);
    return r;
}

static int replace_limit(struct limit_store *store, struct limit_entry *entry, const struct limit *limit,
                         char *error)
{
    struct limit before = entry->limit;
    int r;

    entry->limit = *limit;
    r = save(store, error);
    if (r < 0)
        entry->limit = before;
    return r;
}

static int drop_limit(struct limit_store *store, struct limit_entry *entry, char *error)
{
    struct list *position = entry->link.next;
    int r;

    list_unlink(&entry->link);
    r = save(store, error);
    if (r < 0)
        list_append(position, &entry->link);
    else
        entry_free(entry);
    return r;
}

int limit_store_change(struct limit_store *store, const char *domain, const char *instance,
                       const struct limit *limit, char error[static LIMIT_STORE_ERROR_MAX])
{
    struct limit_entry *entry = find_entry(store, domain, instance);

    if (entry && limit)
        return replace_limit(store, entry, limit, error);
    if (entry)
        return drop_limit(store, entry, error);
    return limit ? add_limit(store, domain, instance, limit, error) : 0;
}
