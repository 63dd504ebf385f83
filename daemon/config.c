/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Reading a configuration file. What a section may hold is a table for each kind of section (config_keys.c);
 * a key that isn't in it, a key given twice and a value of the wrong form are errors that name file, line,
 * key and what would be accepted.
 *
 * inih splits lines into keys and values. It tells neither line numbers nor which lines were too long for
 * it; it asks us for every line, so we know both. Leading blanks are taken off on the way, since it would
 * take an indented line for the continuation of the one before. Sections are read here: inih cuts their
 * names after 49 characters or at the first bracket, and says nothing of one without keys.
 *
 * What is looked up in the result is in config_lookup.c.
 */

#include "config.h"

#include <errno.h>
#include <ini.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/arith.h"
#include "base/parse.h"
#include "config_keys.h"

#define BYTE_ORDER_MARK "\xef\xbb\xbf"
#define NOT_A_LINE "expected [section] or key=value"
#define SECTIONS "[daemon], [gpu NUMBER or UUID], [domain NAME] and [instance PATTERN]"

enum section_kind { SECTION_DAEMON, SECTION_GPU, SECTION_DOMAIN, SECTION_INSTANCE };

struct parser {
    const char *text;
    const char *file;
    unsigned line;
    struct config *config;
    enum section_kind kind; /* of the section at hand */
    char *target;           /* what its keys are fields of; NULL: there was no section yet */
    int r;
    char *error;
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

/* ---- Sections ---- */

static const struct {
    const char *name;
    const struct config_keys *keys;
} section_kinds[] = {
    [SECTION_DAEMON] = {"daemon", &config_daemon_keys},
    [SECTION_GPU] = {"gpu", &config_daemon_keys},
    [SECTION_DOMAIN] = {"domain", &config_domain_keys},
    [SECTION_INSTANCE] = {"instance", &config_instance_keys},
};

static struct config *config_new(void)
{
    struct config *config = calloc(1, sizeof(*config));

    if (!config)
        return NULL;
    config->budget_bytes = config->utilization_ppm = config->headroom_bytes = CONFIG_UNSET;
    config->reserve_bytes = config->warm_extents = config->idle_ns = config->log_level = CONFIG_UNSET;
    return config;
}

/* Makes room for one more in an array; NULL: out of memory, which is told. */
static void *grow(struct parser *parser, void *array, size_t n, size_t size)
{
    void *grown = reallocarray(array, n + 1, size);

    if (!grown)
        fail_memory(parser);
    return grown;
}

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
    domains = grow(parser, config->domains, config->n_domains, sizeof(*domains));
    if (!domains)
        return NULL;
    config->domains = domains;
    domains[config->n_domains] =
        (struct config_domain){.name = strdup(name), .mode = CONFIG_UNSET, .line = parser->line};
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
            fail(parser, "[instance %s] is given twice", pattern);
            return NULL;
        }
    }
    limits = grow(parser, config->limits, config->n_limits, sizeof(*limits));
    if (!limits)
        return NULL;
    config->limits = limits;
    limits[config->n_limits] = (struct config_limit){
        .pattern = strdup(pattern), .bytes = CONFIG_UNSET, .ppm = CONFIG_PPM_UNSET, .line = parser->line};
    if (!limits[config->n_limits].pattern) {
        fail_memory(parser);
        return NULL;
    }
    return &limits[config->n_limits++];
}

/* "GPU-" or "MIG-", and 16 bytes in the usual groups. */
static bool is_uuid(const char *text)
{
    static const char form[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";

    if (strncmp(text, "GPU-", 4) != 0 && strncmp(text, "MIG-", 4) != 0)
        return false;
    text += 4;
    for (size_t i = 0; form[i]; i++) {
        if (form[i] == '-' ? text[i] != '-' : !text[i] || !strchr("0123456789abcdefABCDEF", text[i]))
            return false;
    }
    return strlen(text) == strlen(form);
}

static struct config *settings_of(struct parser *parser, const char *which)
{
    struct config *config = parser->config;
    struct config_gpu gpu = {.index = CONFIG_UNSET}, *gpus;

    if (is_uuid(which)) {
        memcpy(gpu.uuid, which, strlen(which) + 1);
    } else if (parse_u64(which, &gpu.index) < 0 || gpu.index > UINT16_MAX) {
        fail(parser, "[gpu %s]: expected the number of a GPU, in PCI order, or its UUID", which);
        return NULL;
    }
    for (size_t i = 0; i < config->n_gpus; i++) {
        if (config->gpus[i].index == gpu.index && config_uuids_match(config->gpus[i].uuid, gpu.uuid))
            return config->gpus[i].settings;
    }
    gpus = grow(parser, config->gpus, config->n_gpus, sizeof(*gpus));
    if (!gpus)
        return NULL;
    config->gpus = gpus;
    gpu.settings = config_new();
    if (!gpu.settings) {
        fail_memory(parser);
        return NULL;
    }
    gpus[config->n_gpus++] = gpu;
    return gpu.settings;
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
    return fail(parser, "[%s] is not a section; there are " SECTIONS, section);
}

static void *section_target(struct parser *parser, enum section_kind kind, const char *argument)
{
    switch (kind) {
    case SECTION_GPU:
        return settings_of(parser, argument);
    case SECTION_DOMAIN:
        return domain_of(parser, argument);
    case SECTION_INSTANCE:
        return limit_of(parser, argument);
    default:
        return parser->config;
    }
}

/* The name goes up to the last bracket, since a pattern may have some; behind it there may be a comment. */
static int open_section(struct parser *parser, const char *line)
{
    _cleanup_free_ char *name = strdup(line + 1);
    const char *argument = "";
    char *comment, *end;

    if (!name)
        return fail_memory(parser);
    for (comment = name; (comment = strpbrk(comment, ";#")); comment++) {
        if (comment > name && strchr(" \t", comment[-1])) {
            *comment = '\0';
            break;
        }
    }
    end = strrchr(name, ']');
    if (!end || end[1 + strspn(end + 1, " \t\r")])
        return fail(parser, NOT_A_LINE);
    while (end > name && strchr(" \t", end[-1]))
        end--;
    *end = '\0';
    if (section_split(parser, name + strspn(name, " \t"), &parser->kind, &argument) == 0)
        parser->target = section_target(parser, parser->kind, argument);
    return parser->r;
}

/* ---- Keys ---- */

static const struct config_key *find_key(struct parser *parser, enum section_kind kind, const char *name)
{
    const struct config_keys *keys = section_kinds[kind].keys;
    const struct config_key *key = config_key_find(keys, name);
    char known[512];

    if (key)
        return key;
    config_keys_list(keys, known, sizeof(known));
    fail(parser, "%s is not a key of [%s]; it has %s", name, section_kinds[kind].name, known);
    return NULL;
}

static int on_value(void *user, const char *section, const char *name, const char *value)
{
    struct parser *parser = user;
    const struct config_key *key;
    int r;

    if (!parser->target)
        return fail(parser, "%s stands before the first section; there are " SECTIONS, name), 0;
    key = find_key(parser, parser->kind, name);
    if (!key)
        return 0;
    if (config_key_is_given(key, parser->target + key->offset))
        return fail(parser, "%s is given twice", name), 0;
    r = key->read(value, parser->target + key->offset);
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
    if (*buf == '[' && open_section(parser, buf) < 0)
        return NULL;
    return buf;
}

/* ---- The whole ---- */

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
    for (size_t i = 0; i < config->n_gpus; i++)
        config_free(config->gpus[i].settings);
    free(config->gpus);
    free(config->domains);
    free(config->limits);
    free(config->socket);
    free(config->state_dir);
    free(config->socket_group);
    free(config->admin_group);
    free(config->metrics_listen);
    free(config);
    return NULL;
}

static int check_whole(struct parser *parser)
{
    const struct config *config = parser->config;

    for (size_t i = 0; i < config->n_domains; i++) {
        parser->line = config->domains[i].line;
        if (!config->domains[i].socket)
            return fail(parser, "[domain %s] has no socket", config->domains[i].name);
    }
    for (size_t i = 0; i < config->n_limits; i++) {
        parser->line = config->limits[i].line;
        if (config->limits[i].bytes == CONFIG_UNSET && config->limits[i].ppm == CONFIG_PPM_UNSET)
            return fail(parser, "[instance %s] has no limit", config->limits[i].pattern);
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
    if (strncmp(text, BYTE_ORDER_MARK, strlen(BYTE_ORDER_MARK)) == 0)
        parser.text += strlen(BYTE_ORDER_MARK);
    line = ini_parse_stream(next_line, &parser, on_value, &parser);
    if (line > 0 && parser.r == 0) {
        parser.line = (unsigned)line;
        fail(&parser, NOT_A_LINE);
    }
    if (parser.r == 0)
        check_whole(&parser);
    if (parser.r < 0)
        return parser.r;
    *ret = steal_pointer(config);
    return 0;
}
