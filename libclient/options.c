/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Options win over the environment, the environment over defaults. The environment is read with
 * secure_getenv(), and only here: a set-user-id program is not steered by whoever starts it.
 */

#include "options.h"

#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/parse.h"
#include "error.h"
#include "layout.h"

#define DEFAULT_TIMEOUT_MS 60000
#define DEFAULT_REPORT_MS 100
#define TIMEOUT_MAX_S 1e9
#define DEFAULT_MIN_RESERVED_PAGES 5
#define DEFAULT_MAX_RESERVED_PAGES 10
#define DEFAULT_PAGE_BYTES (2 * MIB)
#define MILLION 1000000

/* A variable that is set and not empty, or NULL. */
static const char *text_of(const char *name)
{
    const char *text = secure_getenv(name);

    return text && *text ? text : NULL;
}

static int bad_variable(const char *name, const char *text, const char *wanted)
{
    return error_set(KVC_E_ENVIRONMENT, "%s is \"%.64s\", which is not %s", name, text, wanted);
}

/* *ret keeps its value where the variable is not set. */
static int read_count(const char *name, uint64_t max, const char *wanted, uint64_t *ret)
{
    const char *text = text_of(name);
    uint64_t value;

    if (!text)
        return 0;
    if (parse_u64(text, &value) < 0 || value > max)
        return bad_variable(name, text, wanted);
    *ret = value;
    return 0;
}

static int read_boolean(const char *name, bool *ret)
{
    const char *text = text_of(name);

    if (text && parse_bool(text, ret) < 0)
        return bad_variable(name, text, "true or false");
    return 0;
}

static bool ppm_of_fraction(double fraction, uint32_t *ret)
{
    if (!(fraction > 0) || fraction > 1)
        return false;
    *ret = (uint32_t)(fraction * MILLION + 0.5);
    *ret = *ret ? *ret : 1;
    return true;
}

static int read_utilization(struct settings *s)
{
    static const char name[] = "KVCACHED_GPU_UTILIZATION";
    const char *text = text_of(name);
    double value;

    if (!text)
        return 0;
    if (parse_decimal(text, &value) < 0 || !ppm_of_fraction(value, &s->limit_ppm))
        return bad_variable(name, text, "a fraction above 0 and at most 1");
    return 0;
}

/* The rules of the wire, so that a bad name is found out here, with its origin. */
static bool name_is_good(const char *name)
{
    size_t length = strlen(name);

    if (length < 1 || length > INSTANCE_NAME_MAX || *name == '.' || *name == '-')
        return false;
    for (; *name; name++)
        if (!isascii((unsigned char)*name) || (!isalnum((unsigned char)*name) && !strchr("._-", *name)))
            return false;
    return true;
}

#define NAME_RULE "1 to 64 letters, digits, '.', '_' or '-', not starting with '.' or '-'"

static int resolve_instance(const char *option, struct settings *s)
{
    const char *variable = option ? NULL : text_of("KVCACHED_IPC_NAME");

    /* Who passes a name may have made it of the variable. */
    if (variable && !name_is_good(variable))
        return bad_variable("KVCACHED_IPC_NAME", variable, "an instance name: " NAME_RULE);
    if (option && !name_is_good(option))
        return error_set(KVC_E_INVALID, "\"%.64s\" is not an instance name: " NAME_RULE, option);
    if (option || variable)
        snprintf(s->instance, sizeof(s->instance), "%s", option ? option : variable);
    else
        snprintf(s->instance, sizeof(s->instance), "kvcached_proc_%ld", (long)getpgrp());
    return 0;
}

static int resolve_gpu(const char *option, struct settings *s)
{
    uint64_t index;

    if (!option)
        return 0;
    if (strncmp(option, "GPU-", 4) == 0 || strncmp(option, "MIG-", 4) == 0) {
        s->gpu_uuid = option;
        return 0;
    }
    if (parse_u64(option, &index) < 0 || index > UINT16_MAX)
        return error_set(KVC_E_INVALID, "\"%.64s\" is neither a GPU's number nor its UUID", option);
    s->has_gpu_index = true;
    s->gpu_index = (uint32_t)index;
    return 0;
}

static int resolve_reserves(const struct kvc_options *o, struct settings *s)
{
    static const char wanted[] = "a number of pages";
    uint64_t min = DEFAULT_MIN_RESERVED_PAGES, max = DEFAULT_MAX_RESERVED_PAGES;
    bool prealloc = true;
    int r;

    r = read_count("KVCACHED_MIN_RESERVED_PAGES", INT_MAX, wanted, &min);
    if (r == 0)
        r = read_count("KVCACHED_MAX_RESERVED_PAGES", INT_MAX, wanted, &max);
    if (r == 0)
        r = read_boolean("KVCACHED_PAGE_PREALLOC_ENABLED", &prealloc);
    if (r < 0)
        return r;
    if (o->min_reserved_pages < -1 || o->max_reserved_pages < -1)
        return error_set(KVC_E_INVALID, "A number of reserved pages is negative");
    s->max_reserved_pages = o->max_reserved_pages >= 0 ? (uint64_t)o->max_reserved_pages : max;
    if (o->min_reserved_pages >= 0)
        min = (uint64_t)o->min_reserved_pages;
    s->min_reserved_pages = prealloc ? u64_min(min, s->max_reserved_pages) : 0;
    s->max_reserved_bytes = o->max_reserved_bytes ? o->max_reserved_bytes : UINT64_MAX;
    return 0;
}

static int resolve_daemon_uid(struct settings *s)
{
    uint64_t uid = UINT64_MAX;
    int r = read_count("KVCACHED_DAEMON_UID", UINT32_MAX - 1, "a user's number", &uid);

    s->has_daemon_uid = uid != UINT64_MAX;
    s->daemon_uid = (uid_t)uid;
    return r;
}

static int resolve_role(enum kvc_role role, struct settings *s)
{
    if (role != 0 && role != KVC_ROLE_ENGINE && role != KVC_ROLE_WORKER && role != KVC_ROLE_SCHEDULER &&
        role != KVC_ROLE_CONTROLLER)
        return error_set(KVC_E_INVALID, "%d is not a role", (int)role);
    s->role = role ? role : KVC_ROLE_ENGINE;
    return 0;
}

static int resolve_limit(double option, struct settings *s)
{
    int r = read_utilization(s);

    if (r < 0)
        return r;
    if (option != 0 && !ppm_of_fraction(option, &s->limit_ppm))
        return error_set(KVC_E_INVALID, "gpu_utilization is not a fraction above 0 and at most 1");
    return 0;
}

/* In seconds, as a decimal number; not above zero: no limit. */
static int read_timeout(uint64_t *ret_ns)
{
    static const char name[] = "KVCACHED_IPC_TIMEOUT";
    const char *text = text_of(name);
    bool negative = text && *text == '-';
    double seconds;

    if (!text)
        return 0;
    if (parse_decimal(text + negative, &seconds) < 0 || seconds > TIMEOUT_MAX_S)
        return bad_variable(name, text, "a number of seconds");
    *ret_ns = negative || seconds <= 0 ? UINT64_MAX : (uint64_t)(seconds * (double)NSEC_PER_SEC);
    return 0;
}

static int resolve_timeout(int timeout_ms, struct settings *s)
{
    int r;

    s->timeout_ns = DEFAULT_TIMEOUT_MS * NSEC_PER_MSEC;
    r = read_timeout(&s->timeout_ns);
    if (timeout_ms < 0)
        s->timeout_ns = UINT64_MAX;
    else if (timeout_ms > 0)
        s->timeout_ns = (uint64_t)timeout_ms * NSEC_PER_MSEC;
    return r;
}

static int resolve_listener(const struct kvc_options *o, struct settings *s)
{
    if (o->listener && !options_copy(&s->listener, sizeof(s->listener), sizeof(s->listener), o->listener))
        return error_set(KVC_E_INVALID, "kvc_listener has a size that this library does not know");
    s->listener_data = o->listener_data;
    s->report_ns = (o->report_ms ? o->report_ms : DEFAULT_REPORT_MS) * NSEC_PER_MSEC;
    return 0;
}

/* ---- Layouts ---- */

static int read_page_size(uint64_t *ret_bytes)
{
    static const char name[] = "KVCACHED_PAGE_SIZE_MB";
    const char *text = text_of(name);
    uint64_t mib;

    if (!text)
        return 0;
    if (parse_u64(text, &mib) < 0 || mib == 0 || mib % 2 != 0 || mib > UINT64_MAX / MIB)
        return bad_variable(name, text, "a multiple of 2");
    *ret_bytes = mib * MIB;
    return 0;
}

int layout_resolve(const struct kvc_layout *options, struct layout *ret)
{
    struct layout layout = {.layers = options->layers,
                            .kv_buffers = options->kv_buffers,
                            .page_bytes = DEFAULT_PAGE_BYTES,
                            .contiguous = true};
    int r;

    if (options->contiguous < -1 || options->contiguous > 1)
        return error_set(KVC_E_INVALID, "contiguous is 1, 0, or -1");
    r = read_page_size(&layout.page_bytes);
    if (r == 0)
        r = read_boolean("KVCACHED_CONTIGUOUS_LAYOUT", &layout.contiguous);
    if (r < 0)
        return r;
    if (options->page_bytes)
        layout.page_bytes = options->page_bytes;
    if (options->contiguous >= 0)
        layout.contiguous = options->contiguous != 0;
    *ret = layout;
    return 0;
}

static int explain_layout(int r)
{
    switch (r) {
    case LAYOUT_E_LAYERS:
        return error_set(KVC_E_INVALID, "A layout needs layers");
    case LAYOUT_E_BUFFERS:
        return error_set(KVC_E_INVALID, "A layer has one buffer or two");
    default:
        return error_set(KVC_E_INVALID, "A page over all layers is larger than any address space");
    }
}

KVC_API int kvc_layout_region(const struct kvc_layout *layout, struct kvc_region_options *options)
{
    struct kvc_layout copy;
    struct layout resolved;
    uint64_t segments, page_bytes;
    int r;

    if (!options || !layout || !options_copy(&copy, sizeof(copy), sizeof(copy), layout))
        return error_set(KVC_E_INVALID, "kvc_layout has a size that this library does not know");
    r = layout_resolve(&copy, &resolved);
    if (r < 0)
        return r;
    r = layout_shape(&resolved, &segments, &page_bytes);
    if (r == 0 && segments > UINT32_MAX)
        r = LAYOUT_E_SPACE;
    if (r != 0)
        return explain_layout(r);
    options->segments = (uint32_t)segments;
    options->page_bytes = page_bytes;
    return 0;
}

int settings_resolve(const struct kvc_options *options, struct settings *ret)
{
    struct kvc_options o;
    struct settings s = {0};
    int r;

    if (!options || !options_copy(&o, sizeof(o), OPTIONS_SIZE_FIRST, options))
        return error_set(KVC_E_INVALID, "kvc_options has a size that this library does not know");
    s.socket = o.socket ? o.socket : text_of("KVCACHED_SOCKET");
    s.emulator_dir = text_of("KVCACHED_EMULATOR_DIR");
    s.own_thread = o.own_thread != 0;
    s.log = o.log;
    s.log_data = o.log_data;
    s.interrupt = (struct interrupt){.is_wanted = o.interrupted, .data = o.interrupted_data};
    r = resolve_timeout(o.timeout_ms, &s);
    if (r == 0)
        r = resolve_listener(&o, &s);
    if (r == 0)
        r = resolve_instance(o.instance, &s);
    if (r == 0)
        r = resolve_gpu(o.gpu, &s);
    if (r == 0)
        r = resolve_role(o.role, &s);
    if (r == 0)
        r = resolve_reserves(&o, &s);
    if (r == 0)
        r = resolve_daemon_uid(&s);
    if (r == 0)
        r = resolve_limit(o.gpu_utilization, &s);
    if (r == 0)
        *ret = s;
    return r;
}

bool options_copy(void *to, size_t to_size, size_t first_size, const void *from)
{
    size_t size;

    memcpy(&size, from, sizeof(size));
    if (size < first_size || size > 64 * to_size)
        return false;
    for (size_t i = to_size; i < size; i++)
        if (((const unsigned char *)from)[i])
            return false;
    memset(to, 0, to_size);
    memcpy(to, from, size < to_size ? size : to_size);
    return true;
}
