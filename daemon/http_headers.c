/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Two headers are looked into. What doesn't have the form that it should have is taken for what gives the
 * client least: a foreign host, a type that isn't accepted.
 */

#include "http_headers.h"

#include <stddef.h>
#include <string.h>
#include <strings.h>

/* ---- Host ---- */

static bool is_port_or_nothing(const char *text)
{
    if (*text == '\0')
        return true;
    return *text == ':' && strlen(text) <= 6 && text[1 + strspn(text + 1, "0123456789")] == '\0';
}

bool http_host_is_local(const char *host)
{
    static const char *const names[] = {"localhost", "[::1]"};
    size_t length;

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        length = strlen(names[i]);
        if (strncasecmp(host, names[i], length) == 0)
            return is_port_or_nothing(host + length);
    }
    length = strspn(host, "0123456789.");
    return strncmp(host, "127.", 4) == 0 && length <= 15 && is_port_or_nothing(host + length);
}

/* ---- Accept ---- */

#define BLANKS " \t"

struct word {
    const char *text;
    size_t length;
};

/* What comes before the next `separator`, without blanks around it; moves on behind that. */
static struct word next_word(const char **rest, const char *end, char separator)
{
    const char *text = *rest, *stop = memchr(text, separator, (size_t)(end - text));
    struct word word;

    *rest = stop ? stop + 1 : end;
    stop = stop ?: end;
    while (text < stop && strchr(BLANKS, *text))
        text++;
    while (stop > text && strchr(BLANKS, stop[-1]))
        stop--;
    word = (struct word){text, (size_t)(stop - text)};
    return word;
}

static bool is(const struct word *word, const char *text)
{
    return word->length == strlen(text) && strncasecmp(word->text, text, word->length) == 0;
}

static bool starts(const struct word *word, const char *text)
{
    return word->length >= strlen(text) && strncasecmp(word->text, text, strlen(text)) == 0;
}

/* In thousandths: "1", "0.5", "0.125"; 0 for what isn't one. */
static unsigned weight_of(const struct word *value)
{
    unsigned weight = 0, unit = 1000;

    for (size_t i = 0; i < value->length && i < 5; i++) {
        char c = value->text[i];

        if (i == 1 ? c != '.' : c < '0' || c > '9')
            return 0;
        if (i == 1)
            continue;
        weight += (unsigned)(c - '0') * unit;
        unit /= 10;
    }
    return value->length > 5 || weight > 1000 ? 0 : weight;
}

/* One range of the header: its weight for OpenMetrics and for text, kept where it is the greatest so far. */
static void weigh(const struct word *range, unsigned *openmetrics, unsigned *text)
{
    const char *rest = range->text, *end = range->text + range->length;
    struct word type = next_word(&rest, end, ';');
    unsigned weight = 1000;
    bool is_known = true;

    while (rest < end) {
        struct word parameter = next_word(&rest, end, ';'), value;

        if (starts(&parameter, "q=")) {
            value = (struct word){parameter.text + 2, parameter.length - 2};
            weight = weight_of(&value);
        } else if (starts(&parameter, "version=")) {
            value = (struct word){parameter.text + 8, parameter.length - 8};
            is_known = is(&value, "1.0.0") || is(&value, "\"1.0.0\"");
        }
    }
    if (is(&type, "application/openmetrics-text") && is_known && weight > *openmetrics)
        *openmetrics = weight;
    else if (is(&type, "text/plain") && weight > *text)
        *text = weight;
}

bool http_accepts_openmetrics(const char *accept)
{
    const char *rest = accept, *end = accept + strlen(accept);
    unsigned openmetrics = 0, text = 0;

    while (rest < end) {
        struct word range = next_word(&rest, end, ',');

        weigh(&range, &openmetrics, &text);
    }
    return openmetrics > 0 && openmetrics >= text;
}
