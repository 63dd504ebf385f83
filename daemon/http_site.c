/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One table of paths. Every answer forbids browsers what the page doesn't need: scripts and styles of others,
 * frames, guesses at types, and reading from other sites' pages. Nothing is kept by caches.
 */

#include "http_site.h"

#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "http_headers.h"
#include "http_page.h"
#include "process_stats.h"
#include "state.h"
#include "state_json.h"

#define PLAIN "text/plain; charset=utf-8"
#define FILES_MAX 8
#define DRIVER_HANGS_NS (5 * NSEC_PER_SEC) /* in a call */

enum live { LIVE_METRICS, LIVE_OPENMETRICS, LIVE_STATE, LIVE_HEALTH, LIVE_READY, _LIVES };

struct http_site {
    struct http_answer refusals[_HTTP_REFUSALS];
    struct MHD_Response *files[FILES_MAX];
    struct state *state;
    uint64_t state_ns;
    struct http_answer lives[_LIVES]; /* of this state, those that were asked for */
};

static const struct {
    const char *path;
    enum live live;
} live_paths[] = {
    {"/metrics", LIVE_METRICS},
    {"/api/v1/state", LIVE_STATE},
    {"/healthz", LIVE_HEALTH},
    {"/readyz", LIVE_READY},
};

static const struct {
    unsigned status;
    const char *text;
} refusal_texts[_HTTP_REFUSALS] = {
    [HTTP_REFUSE_HOST] = {MHD_HTTP_FORBIDDEN,
                          "This is served to localhost, 127.0.0.1 and [::1], by these names only.\n"},
    [HTTP_REFUSE_PATH] = {MHD_HTTP_NOT_FOUND,
                          "There are /, /metrics, /api/v1/state, /healthz and /readyz.\n"},
    [HTTP_REFUSE_METHOD] = {MHD_HTTP_METHOD_NOT_ALLOWED, "Nothing can be changed here: GET and HEAD.\n"},
    [HTTP_REFUSE_BODY] = {MHD_HTTP_CONTENT_TOO_LARGE, "A request has no body here.\n"},
    [HTTP_REFUSE_SILENCE] = {MHD_HTTP_SERVICE_UNAVAILABLE, "The daemon's loop doesn't answer.\n"},
    [HTTP_REFUSE_MEMORY] = {MHD_HTTP_SERVICE_UNAVAILABLE, "The daemon is out of memory.\n"},
};

/* ---- Responses ---- */

static bool add_headers(struct MHD_Response *response, const char *type)
{
    static const char *const headers[][2] = {
        {"Cache-Control", "no-store"},
        {"Content-Security-Policy",
         "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
         "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
        {"Cross-Origin-Opener-Policy", "same-origin"},
        {"Cross-Origin-Resource-Policy", "same-origin"},
        {"Referrer-Policy", "no-referrer"},
        {"X-Content-Type-Options", "nosniff"},
        {"X-Frame-Options", "DENY"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(headers); i++)
        if (MHD_add_response_header(response, headers[i][0], headers[i][1]) != MHD_YES)
            return false;
    return MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type) == MHD_YES;
}

/* Takes nothing over on failure. */
static struct MHD_Response *with_headers(struct MHD_Response *response, const char *type)
{
    if (!response || add_headers(response, type))
        return response;
    MHD_destroy_response(response);
    return NULL;
}

static struct MHD_Response *fixed_response(const void *data, size_t size, const char *type)
{
    /* It is only read. */
    return with_headers(
        MHD_create_response_from_buffer(size, (void *)(uintptr_t)data, MHD_RESPMEM_PERSISTENT), type);
}

static struct MHD_Response *text_response(const char *text)
{
    return fixed_response(text, strlen(text), PLAIN);
}

static struct MHD_Response *made_response(char *text, size_t length, const char *type)
{
    struct MHD_Response *response = MHD_create_response_from_buffer_with_free_callback(length, text, free);

    if (!response)
        free(text);
    return with_headers(response, type);
}

static void destroy(struct MHD_Response *response)
{
    if (response)
        MHD_destroy_response(response);
}

/* ---- The site ---- */

struct http_site *http_site_new(void)
{
    struct http_site *site = calloc(1, sizeof(*site));
    bool ok = site != NULL;

    for (size_t i = 0; ok && i < _HTTP_REFUSALS; i++) {
        site->refusals[i] =
            (struct http_answer){refusal_texts[i].status, text_response(refusal_texts[i].text)};
        ok = site->refusals[i].response;
    }
    for (size_t i = 0; ok && page_files[i].path && i < FILES_MAX; i++) {
        site->files[i] = fixed_response(page_files[i].data, page_files[i].size, page_files[i].type);
        ok = site->files[i];
    }
    if (ok && MHD_add_response_header(site->refusals[HTTP_REFUSE_METHOD].response, MHD_HTTP_HEADER_ALLOW,
                                      "GET, HEAD") == MHD_YES)
        return site;
    return http_site_free(site);
}

static void forget_state(struct http_site *site)
{
    for (size_t i = 0; i < _LIVES; i++) {
        destroy(site->lives[i].response);
        site->lives[i] = (struct http_answer){0};
    }
    site->state = state_free(site->state);
}

struct http_site *http_site_free(struct http_site *site)
{
    if (!site)
        return NULL;
    forget_state(site);
    for (size_t i = 0; i < FILES_MAX; i++)
        destroy(site->files[i]);
    for (size_t i = 0; i < _HTTP_REFUSALS; i++)
        destroy(site->refusals[i].response);
    free(site);
    return NULL;
}

void http_site_set_state(struct http_site *site, struct state *state, uint64_t now_ns)
{
    forget_state(site);
    site->state = state;
    site->state_ns = now_ns;
}

uint64_t http_site_state_ns(const struct http_site *site)
{
    return site->state ? site->state_ns : 0;
}

struct http_answer http_site_refuse(const struct http_site *site, enum http_refusal refusal)
{
    return site->refusals[refusal];
}

bool http_site_find(const struct http_site *site, const char *path, bool *ret_needs_state)
{
    for (size_t i = 0; i < ARRAY_SIZE(live_paths); i++) {
        if (strcmp(path, live_paths[i].path) == 0) {
            *ret_needs_state = true;
            return true;
        }
    }
    for (size_t i = 0; page_files[i].path; i++) {
        if (strcmp(path, page_files[i].path) == 0) {
            *ret_needs_state = false;
            return true;
        }
    }
    return false;
}

/* ---- Putting a state into words ---- */

static struct http_answer make_metrics(const struct state *state, bool openmetrics,
                                       const struct http_stats *stats)
{
    struct metrics metrics = {.state = state, .http = *stats};
    size_t length;
    char *text;

    process_stats(&metrics.process);
    if (metrics_text(&metrics, openmetrics, &text, &length) < 0)
        return (struct http_answer){0};
    return (struct http_answer){
        MHD_HTTP_OK, made_response(text, length,
                                   openmetrics ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
                                               : "text/plain; version=0.0.4; charset=utf-8")};
}

static struct http_answer make_state(const struct state *state)
{
    size_t length;
    char *text;

    if (state_json(state, &text, &length) < 0)
        return (struct http_answer){0};
    return (struct http_answer){MHD_HTTP_OK, made_response(text, length, "application/json")};
}

static struct http_answer make_ready(const struct state *state)
{
    const char *why = NULL;

    if (state->draining)
        why = "The daemon is stopping.\n";
    else if (state->look_failed)
        why = "The driver doesn't say how much memory is free.\n";
    else if (state->driver.busy_ns > DRIVER_HANGS_NS)
        why = "A call to the driver has not returned for more than five seconds.\n";
    return (struct http_answer){why ? MHD_HTTP_SERVICE_UNAVAILABLE : MHD_HTTP_OK,
                                text_response(why ?: "ready\n")};
}

static struct http_answer make(const struct state *state, enum live live, const struct http_stats *stats)
{
    switch (live) {
    case LIVE_METRICS:
    case LIVE_OPENMETRICS:
        return make_metrics(state, live == LIVE_OPENMETRICS, stats);
    case LIVE_STATE:
        return make_state(state);
    case LIVE_READY:
        return make_ready(state);
    default:
        return (struct http_answer){MHD_HTTP_OK, text_response("ok\n")};
    }
}

static struct http_answer answer_live(struct http_site *site, enum live live, const struct http_stats *stats)
{
    if (!site->lives[live].response)
        site->lives[live] = make(site->state, live, stats);
    return site->lives[live].response ? site->lives[live] : site->refusals[HTTP_REFUSE_MEMORY];
}

struct http_answer http_site_answer(struct http_site *site, const char *path, const char *accept,
                                    const struct http_stats *stats)
{
    for (size_t i = 0; i < ARRAY_SIZE(live_paths); i++) {
        if (strcmp(path, live_paths[i].path) == 0) {
            enum live live = live_paths[i].live;

            if (live == LIVE_METRICS && accept && http_accepts_openmetrics(accept))
                live = LIVE_OPENMETRICS;
            return answer_live(site, live, stats);
        }
    }
    for (size_t i = 0; page_files[i].path; i++)
        if (strcmp(path, page_files[i].path) == 0)
            return (struct http_answer){MHD_HTTP_OK, site->files[i]};
    return site->refusals[HTTP_REFUSE_PATH];
}
