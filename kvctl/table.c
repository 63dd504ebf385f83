/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The table of `kvctl list`: its columns, what gives way on a narrow terminal, and its colours.
 */

#include "table.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/parse.h"
#include "text.h"

#define NAME_WIDTH 24
#define NAME_WIDTH_MIN 10
#define BYTES_WIDTH 13  /* a blank and "1023.99 GB" with room to spare */
#define PERCENT_WIDTH 8 /* a blank and "100.0 %" */
#define NOTE_OVER_LIMIT "  over limit"
#define NOTE_MISSED_NOTICE "  missed notice"
#define NOTE_FROZEN "  frozen"
#define NOTES_MAX sizeof(NOTE_OVER_LIMIT NOTE_MISSED_NOTICE NOTE_FROZEN)

struct layout {
    unsigned name_width;
    bool limit, reserved, notes;
};

static const char *notes_of(char buf[static NOTES_MAX], const Kvcached__InstanceInfo *instance)
{
    snprintf(buf, NOTES_MAX, "%s%s%s", instance->over_limit ? NOTE_OVER_LIMIT : "",
             instance->missed_notice ? NOTE_MISSED_NOTICE : "", instance->frozen ? NOTE_FROZEN : "");
    return buf;
}

static unsigned max_unsigned(unsigned a, unsigned b)
{
    return a > b ? a : b;
}

static unsigned min_unsigned(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

/* Of all rows, sorted; there may be thousands. NULL when there was no memory for it. */
struct names {
    const char **sorted;
    size_t n;
};

static int compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static struct names names_new(Kvcached__InstanceInfo *const *instances, size_t n)
{
    struct names names = {.sorted = calloc(n, sizeof(*names.sorted)), .n = n};

    if (!names.sorted)
        return names;
    for (size_t i = 0; i < n; i++)
        names.sorted[i] = instances[i]->instance;
    qsort(names.sorted, n, sizeof(*names.sorted), compare);
    return names;
}

/* A name too many with its domain is better than none. */
static bool is_ambiguous(const struct names *names, const char *name)
{
    const char **found =
        names->sorted ? bsearch(&name, names->sorted, names->n, sizeof(name), compare) : NULL;

    if (!found)
        return true;
    return (found > names->sorted && strcmp(found[-1], name) == 0) ||
           (found + 1 < names->sorted + names->n && strcmp(found[1], name) == 0);
}

static const char *row_name(char buf[static TEXT_MAX], const struct names *names,
                            const Kvcached__InstanceInfo *instance)
{
    return text_instance(buf, instance, is_ambiguous(names, instance->instance));
}

/* What a narrow terminal loses first: notes, then length of names, then what is reserved, then the limit. */
static struct layout plan(unsigned width, unsigned longest_name, unsigned longest_notes, bool reserved)
{
    unsigned name_width = max_unsigned(NAME_WIDTH, longest_name);
    unsigned rest = BYTES_WIDTH + PERCENT_WIDTH;
    struct layout layout = {.name_width = name_width, .limit = true, .reserved = reserved, .notes = true};

    if (width == 0)
        return layout;
    layout.limit = width >= NAME_WIDTH_MIN + BYTES_WIDTH + rest;
    if (layout.limit)
        rest += BYTES_WIDTH;
    layout.reserved = reserved && width >= NAME_WIDTH_MIN + BYTES_WIDTH + rest;
    if (layout.reserved)
        rest += BYTES_WIDTH;
    layout.name_width =
        max_unsigned(NAME_WIDTH_MIN, min_unsigned(name_width, width > rest ? width - rest : 0));
    layout.notes = width >= layout.name_width + rest + longest_notes;
    return layout;
}

/* Engines are mostly told apart by the ends of their names, where their process group stands. */
static void print_name(FILE *out, const char *name, unsigned width)
{
    size_t length = strlen(name);

    if (length > width)
        fprintf(out, "~%s", name + length - (width - 1));
    else
        fprintf(out, "%-*s", (int)width, name);
}

static const char *colour_of(const Kvcached__InstanceInfo *instance)
{
    double share = 0;

    if (instance->limit_bytes > 0)
        share = (double)instance->used_bytes / (double)instance->limit_bytes;
    else if (instance->used_bytes > 0)
        share = 1;
    if (share < 0.5)
        return "\033[32m";
    return share < 0.8 ? "\033[33m" : "\033[31m";
}

static void print_row(FILE *out, const struct table_style *style, const struct layout *layout,
                      const char *name, const Kvcached__InstanceInfo *instance)
{
    char size[FORMAT_SIZE_MAX], percent[TEXT_PERCENT_MAX], notes[NOTES_MAX];

    print_name(out, name, layout->name_width);
    if (layout->limit)
        fprintf(out, "%*s", BYTES_WIDTH, format_size(size, instance->limit_bytes));
    fprintf(out, "%*s", BYTES_WIDTH, format_size(size, instance->used_bytes));
    if (layout->reserved)
        fprintf(out, "%*s", BYTES_WIDTH, format_size(size, instance->reserved_bytes));
    text_percent(percent, instance->used_bytes, instance->limit_bytes);
    fprintf(out, "%s%*s%s", style->colour ? colour_of(instance) : "", PERCENT_WIDTH, percent,
            style->colour ? "\033[0m" : "");
    if (layout->notes)
        fputs(notes_of(notes, instance), out);
    fputc('\n', out);
}

void table_print(FILE *out, const struct table_style *style, Kvcached__InstanceInfo *const *instances,
                 size_t n)
{
    unsigned longest = 0, longest_notes = 0;
    char name[TEXT_MAX], notes[NOTES_MAX];
    struct layout layout;
    struct names names;
    bool reserved = false;

    if (n == 0) {
        fputs("No active KVCached segments found.\n", out);
        return;
    }
    names = names_new(instances, n);
    for (size_t i = 0; i < n; i++) {
        longest = max_unsigned(longest, (unsigned)strlen(row_name(name, &names, instances[i])));
        longest_notes = max_unsigned(longest_notes, (unsigned)strlen(notes_of(notes, instances[i])));
        reserved |= instances[i]->reserved_bytes > 0;
    }
    layout = plan(style->width, longest, longest_notes, reserved);
    print_name(out, "IPC", layout.name_width);
    if (layout.limit)
        fprintf(out, "%*s", BYTES_WIDTH, "Limit");
    fprintf(out, "%*s", BYTES_WIDTH, "Used");
    if (layout.reserved)
        fprintf(out, "%*s", BYTES_WIDTH, "Reserved");
    fprintf(out, "%*s\n", PERCENT_WIDTH, "%");
    for (size_t i = 0; i < n; i++)
        print_row(out, style, &layout, row_name(name, &names, instances[i]), instances[i]);
    free(names.sorted);
}
