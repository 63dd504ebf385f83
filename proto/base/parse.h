/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The forms in which people write numbers: sizes, percentages, booleans. All return 0, or -EINVAL for text
 * that is not of the form, or -ERANGE for a number that doesn't fit; *ret is untouched then. Locale plays no
 * part. Surrounding blanks are not accepted.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes: "1024", "512M", "512MB", "1.5G", "2T", any case; K M G T are powers of 1024. A fraction of a byte is
 * dropped. */
int parse_size(const char *text, uint64_t *ret_bytes);

/* Decimal digits only. */
int parse_u64(const char *text, uint64_t *ret);

/* A finite decimal number, no exponent, no sign. */
int parse_decimal(const char *text, double *ret);

/* true/false, 1/0, yes/no, on/off, any case. */
int parse_bool(const char *text, bool *ret);

/* "8.00 GB", "512.00 MB", "0 B": for people. FORMAT_SIZE_MAX includes the terminating NUL. */
#define FORMAT_SIZE_MAX 24
const char *format_size(char buf[static FORMAT_SIZE_MAX], uint64_t bytes);
