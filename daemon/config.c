/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The configuration file. What a section may hold is one table per kind of section; a key that isn't in it, a
 * key given twice and a value of the wrong form are errors that name file, line, key and what would be
 * accepted.
 *
 * inih splits the text into sections, keys and values. It tells neither line numbers nor which lines were too
 * long for it; it asks us for every line, so we know both. Leading blanks are taken off on the way, since it
 * would take an indented line for the continuation of the one before.
 */

#include "config.h"

#include <errno.h>
#include <fnmatch.h>
#include <ini.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/parse.h"
#include "log.h"

#define PPM_ONE 1000000u

enum section_kind { SECTION_DAEMON, SECTION_DOMAIN, SECTION_INSTANCE };

struct parser {
    const char *text;
    const char *file;
    unsigned line;
    struct config *config;
    int r;
    char *error;
};

/* What reads a value into a field. 0, -EINVAL or -ENOMEM. */
typedef int (*value_fn)(const char *value, void *field);

struct key {
    const char *name;
    value_fn read;
    size_t offset;
    const char *accepts;
};

static int __attribute__((format(printf, 2, 3))) fail(struct parser *parser, const char *format, ...)
{
    va_list args;
    int n;

    if (parser->r < 0) /* the first error is the one that is told */
        return parser->r;
    parser->r = -EINVAL;
    n = snprintf(parser->error, CONFIG_ERROR_MAX, "%s:%u: ", parser->file, parser->line);
    if (n < 0 || n >= CONFIG_ERROR_MAX)
        return parser->r;
    va_start(args, format);
    vsnprintf(parser->error + n, CONFIG_ERROR_MAX - (size_t)n, format, args);
    va_end(args);
    return parser->r;
}

static int fail_memory(struct parser *parser)
{
    if (parser->r == 0) {
        parser->r = -ENOMEM;
        snprintf(parser->error, CONFIG_ERROR_MAX, "%s: out of memory", parser->file);
    }
    return parser->r;
}

/* ---- Values ---- */

uint64_t config_part(uint64_t total_bytes, uint32_t ppm)
{
    return total_bytes / PPM_ONE * ppm + total_bytes % PPM_ONE * ppm / PPM_ONE;
}

int config_parse_fraction(const char *text, uint64_t *ret_ppm)
{
    double fraction;

    if (parse_decimal(text, &fraction) < 0 || fraction > 1 || fraction * PPM_ONE < 1)
        return -EINVAL;
    *ret_ppm = (uint64_t)(fraction * PPM_ONE + 0.5);
    return 0;
}

int config_parse_level(const char *text, uint64_t *ret_level)
{
    static const struct {
        const char *name;
        enum log_level level;
    } levels[] = {
        {"error", LOG_LEVEL_ERROR}, {"warning", LOG_LEVEL_WARNING}, {"notice", LOG_LEVEL_NOTICE},
        {"info", LOG_LEVEL_INFO},   {"debug", LOG_LEVEL_DEBUG},
    };

    for (size_t i = 0; i < ARRAY_SIZE(levels); i++) {
        if (strcmp(text, levels[i].name) == 0) {
            *ret_level = levels[i].level;
            return 0;
        }
    }
    return -EINVAL;
}

static int read_string(const char *value, void *field)
{
    char **string = field;

    *string = strdup(value);
    return *string ? 0 : -ENOMEM;
}

static int read_name(const char *value, void *field)
{
    return *value ? read_string(value, field) : -EINVAL;
}

static int read_path(const char *value, void *field)
{
    return *value == '/' ? read_string(value, field) : -EINVAL;
}

static int read_size(const char *value, void *field)
{
    uint64_t bytes;

    if (parse_size(value, &bytes) < 0 || bytes == CONFIG_UNSET)
        return -EINVAL;
    *(uint64_t *)field = bytes;
    return 0;
}

static int read_positive_size(const char *value, void *field)
{
    return strspn(value, "0") == strlen(value) ? -EINVAL : read_size(value, field);
}

static int read_count(const char *value, void *field)
{
    uint64_t count;

    if (parse_u64(value, &count) < 0 || count == 0 || count > UINT32_MAX)
        return -EINVAL;
    *(uint64_t *)field = count;
    return 0;
}

static int read_fraction(const char *value, void *field)
{
    return config_parse_fraction(value, field);
}

static int read_level(const char *value, void *field)
{
    return config_parse_level(value, field);
}

static int read_seconds(const char *value, void *field)
{
    double seconds;

    if (parse_decimal(value, &seconds) < 0 || seconds > 86400)
        return -EINVAL;
    *(uint64_t *)field = (uint64_t)(seconds * 1e9);
    return 0;
}

static int read_mode(const char *value, void *field)
{
    uint64_t mode = 0;

    if (strlen(value) < 3 || strlen(value) > 4 || value[strspn(value, "01234567")])
        return -EINVAL;
    for (; *value; value++)
        mode = mode * 8 + (uint64_t)(*value - '0');
    if (mode & ~(uint64_t)0666)
        return -EINVAL;
    *(uint64_t *)field = mode;
    return 0;
}

/* "8G" or "25%" */
static int read_limit(const char *value, void *field)
{
    struct config_limit *limit = field;
    size_t length = strlen(value);
    char digits[32];
    double percent;

    if (length == 0 || value[length - 1] != '%')
        return read_size(value, &limit->bytes);
    if (length > sizeof(digits))
        return -EINVAL;
    memcpy(digits, value, length - 1);
    digits[length - 1] = '\0';
    if (parse_decimal(digits, &percent) < 0 || percent > 100)
        return -EINVAL;
    limit->ppm = (uint32_t)(percent * PPM_ONE / 100 + 0.5);
    return 0;
}

#define A_PATH "an absolute path"
#define A_SIZE "a size such as 512M or 40G"
#define A_GROUP "the name or number of a group"

static const struct key daemon_keys[] = {
    {"socket", read_path, offsetof(struct config, socket), A_PATH},
    {"socket-group", read_name, offsetof(struct config, socket_group), A_GROUP},
    {"admin-group", read_name, offsetof(struct config, admin_group), A_GROUP},
    {"state-dir", read_path, offsetof(struct config, state_dir), A_PATH},
    {"budget", read_positive_size, offsetof(struct config, budget_bytes), A_SIZE},
    {"utilization", read_fraction, offsetof(struct config, utilization_ppm),
     "a fraction above 0 and at most 1"},
    {"headroom", read_size, offsetof(struct config, headroom_bytes), A_SIZE},
    {"reserve", read_size, offsetof(struct config, reserve_bytes), A_SIZE},
    {"warm", read_count, offsetof(struct config, warm_extents), "a number of extents"},
    {"idle", read_seconds, offsetof(struct config, idle_ns), "seconds, at most 86400"},
    {"log-level", read_level, offsetof(struct config, log_level), "error, warning, notice, info or debug"},
};

static const struct key domain_keys[] = {
    {"socket", read_path, offsetof(struct config_domain, socket), A_PATH},
    {"group", read_name, offsetof(struct config_domain, group), A_GROUP},
    {"mode", read_mode, offsetof(struct config_domain, mode), "an octal mode such as 0660"},
};

static const struct key instance_keys[] = {
    {"limit", read_limit, 0, "a size such as 8G or a percentage such as 25%"},
};

static const struct {
    const char *name;
    const struct key *keys;
    size_t n_keys;
} section_kinds[] = {
    [SECTION_DAEMON] = {"daemon", daemon_keys, ARRAY_SIZE(daemon_keys)},
    [SECTION_DOMAIN] = {"domain", domain_keys, ARRAY_SIZE(domain_keys)},
    [SECTION_INSTANCE] = {"instance", instance_keys, ARRAY_SIZE(instance_keys)},
};

/* ---- Sections ---- */

/* A trust domain's name must not look like one that is made from a uid. */
static bool domain_name_is_valid(const char *name)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t length = strlen(name);

    return length > 0 && length <= CONFIG_DOMAIN_NAME_MAX && strspn(name, letters) == length;
}

static struct config_domain *domain_of(struct parser *parser, const char *name)
{
    struct config *config = parser->config;
    struct config_domain *domains;

    for (size_t i = 0; i < config->n_domains; i++) {
        if (strcmp(config->domains[i].name, name) == 0)
            return &config->domains[i];
    }
    if (!domain_name_is_valid(name)) {
        fail(parser, "[domain %s]: a domain's name has 1 to 64 of the characters A-Z a-z 0-9 . _ -", name);
        return NULL;
    }
    if (config->n_domains == CONFIG_DOMAINS_MAX) {
        fail(parser, "[domain %s]: there may be %d domains", name, CONFIG_DOMAINS_MAX);
        return NULL;
    }
    domains = reallocarray(config->domains, config->n_domains + 1, sizeof(*domains));
    if (!domains) {
        fail_memory(parser);
        return NULL;
    }
    config->domains = domains;
    domains[config->n_domains] = (struct config_domain){.name = strdup(name), .mode = CONFIG_UNSET};
    if (!domains[config->n_domains].name) {
        fail_memory(parser);
        return NULL;
    }
    return &domains[config->n_domains++];
}

static struct config_limit *limit_of(struct parser *parser, const char *pattern)
{
    struct config *config = parser->config;
    struct config_limit *limits;

    for (size_t i = 0; i < config->n_limits; i++) {
        if (strcmp(config->limits[i].pattern, pattern) == 0) {
            fail(parser, "[instance %s]: limit is given twice", pattern);
            return NULL;
        }
    }
    limits = reallocarray(config->limits, config->n_limits + 1, sizeof(*limits));
    if (!limits) {
        fail_memory(parser);
        return NULL;
    }
    config->limits = limits;
    limits[config->n_limits] = (struct config_limit){.pattern = strdup(pattern), .bytes = CONFIG_UNSET};
    if (!limits[config->n_limits].pattern) {
        fail_memory(parser);
        return NULL;
    }
    return &limits[config->n_limits++];
}

/* Splits "domain NAME". The argument is empty where the kind has none. */
static int section_split(struct parser *parser, const char *section, enum section_kind *ret_kind,
                         const char **ret_argument)
{
    size_t length = strcspn(section, " \t");
    const char *argument = section + length + strspn(section + length, " \t");

    for (size_t kind = 0; kind < ARRAY_SIZE(section_kinds); kind++) {
        if (strlen(section_kinds[kind].name) != length ||
            strncmp(section, section_kinds[kind].name, length) != 0)
            continue;
        if ((kind == SECTION_DAEMON) != (*argument == '\0'))
            break;
        *ret_kind = kind;
        *ret_argument = argument;
        return 0;
    }
    return fail(parser, "[%s] is not a section; there are [daemon], [domain NAME] and [instance PATTERN]",
                section);
}

static void list_keys(const struct key *keys, size_t n_keys, char *buf, size_t size)
{
    size_t used = 0;

    for (size_t i = 0; i < n_keys && used < size; i++)
        used += (size_t)snprintf(buf + used, size - used, "%s%s", i ? ", " : "", keys[i].name);
}

static const struct key *find_key(struct parser *parser, enum section_kind kind, const char *name)
{
    const struct key *keys = section_kinds[kind].keys;
    size_t n_keys = section_kinds[kind].n_keys;
    char known[160];

    for (size_t i = 0; i < n_keys; i++) {
        if (strcmp(keys[i].name, name) == 0)
            return &keys[i];
    }
    list_keys(keys, n_keys, known, sizeof(known));
    fail(parser, "%s is not a key of [%s]; it has %s", name, section_kinds[kind].name, known);
    return NULL;
}

static void *section_target(struct parser *parser, enum section_kind kind, const char *argument)
{
    switch (kind) {
    case SECTION_DOMAIN:
        return domain_of(parser, argument);
    case SECTION_INSTANCE:
        return limit_of(parser, argument);
    default:
        return parser->config;
    }
}

/* Fields of one type only are told apart by their unset value: a string's NULL, a number's CONFIG_UNSET. */
static bool is_given(const struct key *key, const void *field)
{
    if (key->read == read_limit)
        return false; /* limit_of() has seen to that */
    if (key->read == read_name || key->read == read_path)
        return *(char *const *)field != NULL;
    return *(const uint64_t *)field != CONFIG_UNSET;
}

static int on_value(void *user, const char *section, const char *name, const char *value)
{
    struct parser *parser = user;
    const struct key *key;
    enum section_kind kind = SECTION_DAEMON;
    const char *argument = NULL;
    char *target;
    int r;

    if (section_split(parser, section, &kind, &argument) < 0)
        return 0;
    key = find_key(parser, kind, name);
    if (!key)
        return 0;
    target = section_target(parser, kind, argument);
    if (!target)
        return 0;
    if (is_given(key, target + key->offset))
        return fail(parser, "%s is given twice", name), 0;
    r = key->read(value, target + key->offset);
    if (r == -ENOMEM)
        fail_memory(parser);
    else if (r < 0)
        fail(parser, "%s=%s: expected %s", name, value, key->accepts);
    return r == 0;
}

/* Gives inih one line, as fgets() would. */
static char *next_line(char *buf, int size, void *stream)
{
    struct parser *parser = stream;
    size_t length;

    if (*parser->text == '\0' || parser->r < 0)
        return NULL;
    parser->line++;
    parser->text += strspn(parser->text, " \t");
    length = strcspn(parser->text, "\n");
    if (length + 2 > (size_t)size) {
        fail(parser, "the line is longer than %d characters", size - 2);
        return NULL;
    }
    memcpy(buf, parser->text, length);
    buf[length] = '\0';
    parser->text += length + (parser->text[length] == '\n');
    return buf;
}

/* ---- The whole ---- */

static struct config *config_new(void)
{
    struct config *config = calloc(1, sizeof(*config));

    if (!config)
        return NULL;
    config->budget_bytes = config->utilization_ppm = config->headroom_bytes = CONFIG_UNSET;
    config->reserve_bytes = config->warm_extents = config->idle_ns = config->log_level = CONFIG_UNSET;
    return config;
}

struct config *config_free(struct config *config)
{
    if (!config)
        return NULL;
    for (size_t i = 0; i < config->n_domains; i++) {
        free(config->domains[i].name);
        free(config->domains[i].socket);
        free(config->domains[i].group);
    }
    for (size_t i = 0; i < config->n_limits; i++)
        free(config->limits[i].pattern);
    free(config->domains);
    free(config->limits);
    free(config->socket);
    free(config->state_dir);
    free(config->socket_group);
    free(config->admin_group);
    free(config);
    return NULL;
}

static int check_whole(struct parser *parser)
{
    const struct config *config = parser->config;

    for (size_t i = 0; i < config->n_domains; i++) {
        if (!config->domains[i].socket)
            return fail(parser, "[domain %s] has no socket", config->domains[i].name);
    }
    return 0;
}

int config_parse(const char *text, const char *file, struct config **ret, char error[static CONFIG_ERROR_MAX])
{
    _cleanup_(config_freep) struct config *config = config_new();
    struct parser parser = {.text = text, .file = file, .config = config, .error = error};
    int line;

    if (!config)
        return fail_memory(&parser);
    line = ini_parse_stream(next_line, &parser, on_value, &parser);
    if (line > 0 && parser.r == 0) {
        parser.line = (unsigned)line;
        fail(&parser, "expected [section] or key=value");
    }
    if (parser.r == 0)
        check_whole(&parser);
    if (parser.r < 0)
        return parser.r;
    *ret = steal_pointer(config);
    return 0;
}

static bool strings_differ(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) != 0 : a != b;
}

static bool domains_differ(const struct config_domain *a, const struct config_domain *b)
{
    return strings_differ(a->name, b->name) || strings_differ(a->socket, b->socket) ||
           strings_differ(a->group, b->group) || a->mode != b->mode;
}

bool config_needs_restart(const struct config *before, const struct config *after)
{
    if (strings_differ(before->socket, after->socket) ||
        strings_differ(before->state_dir, after->state_dir) ||
        strings_differ(before->socket_group, after->socket_group) ||
        before->warm_extents != after->warm_extents || before->n_domains != after->n_domains)
        return true;
    for (size_t i = 0; i < before->n_domains; i++) {
        if (domains_differ(&before->domains[i], &after->domains[i]))
            return true;
    }
    return false;
}

static bool limit_matches(const struct config_limit *limit, const char *domain, const char *instance)
{
    const char *slash = strrchr(limit->pattern, '/');
    char domain_pattern[256];

    if (!slash)
        return fnmatch(limit->pattern, instance, 0) == 0;
    if ((size_t)(slash - limit->pattern) >= sizeof(domain_pattern))
        return false;
    memcpy(domain_pattern, limit->pattern, (size_t)(slash - limit->pattern));
    domain_pattern[slash - limit->pattern] = '\0';
    return fnmatch(domain_pattern, domain, 0) == 0 && fnmatch(slash + 1, instance, 0) == 0;
}

uint64_t config_limit(const struct config *config, const char *domain, const char *instance,
                      uint64_t total_bytes)
{
    for (size_t i = 0; i < config->n_limits; i++) {
        const struct config_limit *limit = &config->limits[i];

        if (limit_matches(limit, domain, instance))
            return limit->bytes != CONFIG_UNSET ? limit->bytes : config_part(total_bytes, limit->ppm);
    }
    return UINT64_MAX;
}
