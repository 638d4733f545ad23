/*
 * A strict parser for messages: RFC 8259, UTF-8 only, bounded in depth and size.
 *
 * Text is decoded in place, which never makes it longer. A lone "\udc80".."\udcff" becomes the
 * byte 0x80..0xff: so Python's json carries names that are no UTF-8.
 */
#include "init.h"

#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 32
#define MAX_NODES (1 << 20)

struct parser {
	char *at;
	char *end;
	struct json *nodes;
	size_t count;
	size_t room;
};

static bool value(struct parser *p, int depth);

static void blanks(struct parser *p)
{
	while (p->at < p->end &&
	       (*p->at == ' ' || *p->at == '\t' || *p->at == '\n' || *p->at == '\r'))
		p->at++;
}

static bool take(struct parser *p, char c)
{
	if (p->at == p->end || *p->at != c)
		return false;
	p->at++;
	return true;
}

static bool take_word(struct parser *p, const char *word)
{
	size_t length = strlen(word);

	if ((size_t)(p->end - p->at) < length || memcmp(p->at, word, length))
		return false;
	p->at += length;
	return true;
}

static struct json *node(struct parser *p, enum kind kind)
{
	struct json *added;

	if (p->count == p->room) {
		size_t room = p->room ? 2 * p->room : 64;
		struct json *nodes;

		if (room > MAX_NODES)
			return NULL;
		nodes = realloc(p->nodes, room * sizeof(*nodes));
		if (!nodes)
			return NULL;
		p->nodes = nodes;
		p->room = room;
	}
	added = &p->nodes[p->count++];
	*added = (struct json){.kind = kind, .nodes = 1};
	return added;
}

static int four_hex(struct parser *p)
{
	int unit = 0;

	if (p->end - p->at < 4)
		return -1;
	for (int i = 0; i < 4; i++) {
		char c = *p->at++;

		if (c >= '0' && c <= '9')
			unit = unit << 4 | (c - '0');
		else if ((c | 32) >= 'a' && (c | 32) <= 'f')
			unit = unit << 4 | ((c | 32) - 'a' + 10);
		else
			return -1;
	}
	return unit;
}

static char *encode(char *to, unsigned int c)
{
	if (c < 0x80) {
		*to++ = (char)c;
	} else if (c < 0x800) {
		*to++ = (char)(0xc0 | c >> 6);
		*to++ = (char)(0x80 | (c & 63));
	} else if (c < 0x10000) {
		*to++ = (char)(0xe0 | c >> 12);
		*to++ = (char)(0x80 | (c >> 6 & 63));
		*to++ = (char)(0x80 | (c & 63));
	} else {
		*to++ = (char)(0xf0 | c >> 18);
		*to++ = (char)(0x80 | (c >> 12 & 63));
		*to++ = (char)(0x80 | (c >> 6 & 63));
		*to++ = (char)(0x80 | (c & 63));
	}
	return to;
}

/* After "\u". Returns where the text goes on, NULL if it is no JSON. */
static char *unit(struct parser *p, char *to, bool *name)
{
	int first = four_hex(p);

	if (first < 0)
		return NULL;
	if (first == 0)
		*name = false;
	if (first < 0xd800 || first > 0xdfff)
		return encode(to, (unsigned int)first);
	if (first < 0xdc00 && p->end - p->at >= 6 && p->at[0] == '\\' && p->at[1] == 'u') {
		char *before = p->at;
		int second;

		p->at += 2;
		second = four_hex(p);
		if (second < 0)
			return NULL;
		if (second >= 0xdc00 && second <= 0xdfff)
			return encode(to, 0x10000u + ((unsigned int)(first - 0xd800) << 10) +
						  (unsigned int)(second - 0xdc00));
		p->at = before;
	}
	if (first >= 0xdc80 && first <= 0xdcff) {
		*to++ = (char)(first - 0xdc00);
		return to;
	}
	*name = false;
	*to++ = '?';
	return to;
}

static char *escape(struct parser *p, char *to, bool *name)
{
	static const char from[] = "\"\\/bfnrt";
	static const char into[] = "\"\\/\b\f\n\r\t";
	const char *found;

	if (p->at == p->end)
		return NULL;
	if (*p->at == 'u') {
		p->at++;
		return unit(p, to, name);
	}
	found = *p->at ? strchr(from, *p->at) : NULL;
	if (!found)
		return NULL;
	p->at++;
	*to++ = into[found - from];
	return to;
}

static bool string(struct parser *p)
{
	bool name = true;
	char *to;
	struct json *added;

	if (!take(p, '"'))
		return false;
	added = node(p, JSON_TEXT);
	if (!added)
		return false;
	added->text = to = p->at;
	while (p->at < p->end && *p->at != '"') {
		if (*p->at == '\\') {
			p->at++;
			to = escape(p, to, &name);
			if (!to)
				return false;
			continue;
		}
		size_t length = utf8_sequence((unsigned char *)p->at, (unsigned char *)p->end);

		if (!length || (unsigned char)*p->at < 0x20)
			return false;
		memmove(to, p->at, length);
		to += length;
		p->at += length;
	}
	if (!take(p, '"'))
		return false;
	*to = '\0';
	if (!name)
		added->kind = JSON_NOT_A_NAME;
	return true;
}

static bool some_digits(struct parser *p)
{
	char *before = p->at;

	while (p->at < p->end && *p->at >= '0' && *p->at <= '9')
		p->at++;
	return p->at > before;
}

static bool number(struct parser *p)
{
	struct json *added = node(p, JSON_INTEGER);
	bool negative = take(p, '-');
	char *first = p->at;

	if (!added || !some_digits(p) || (*first == '0' && p->at - first > 1))
		return false;
	for (char *c = first; c < p->at; c++) {
		int digit = negative ? '0' - *c : *c - '0';

		if (__builtin_mul_overflow(added->integer, 10, &added->integer) ||
		    __builtin_add_overflow(added->integer, digit, &added->integer)) {
			added->kind = JSON_NUMBER;
			break;
		}
	}
	if (take(p, '.')) {
		added->kind = JSON_NUMBER;
		if (!some_digits(p))
			return false;
	}
	if (take(p, 'e') || take(p, 'E')) {
		added->kind = JSON_NUMBER;
		if (!take(p, '+'))
			take(p, '-');
		if (!some_digits(p))
			return false;
	}
	return true;
}

/* A list or an object, up to the bracket that closes it. */
static bool entries(struct parser *p, enum kind kind, char close, int depth)
{
	size_t at = p->count;
	uint32_t count = 0;

	if (depth >= MAX_DEPTH || !node(p, kind))
		return false;
	p->at++;
	blanks(p);
	if (!take(p, close)) {
		do {
			blanks(p);
			if (kind == JSON_OBJECT) {
				if (!string(p))
					return false;
				blanks(p);
				if (!take(p, ':'))
					return false;
			}
			if (!value(p, depth + 1))
				return false;
			count++;
			blanks(p);
		} while (take(p, ','));
		if (!take(p, close))
			return false;
	}
	p->nodes[at].entries = count;
	p->nodes[at].nodes = (uint32_t)(p->count - at);
	return true;
}

static bool value(struct parser *p, int depth)
{
	blanks(p);
	if (p->at == p->end)
		return false;
	switch (*p->at) {
	case '{':
		return entries(p, JSON_OBJECT, '}', depth);
	case '[':
		return entries(p, JSON_LIST, ']', depth);
	case '"':
		return string(p);
	case 'n':
		return take_word(p, "null") && node(p, JSON_NULL);
	case 'f':
		return take_word(p, "false") && node(p, JSON_FALSE);
	case 't':
		return take_word(p, "true") && node(p, JSON_TRUE);
	default:
		return number(p);
	}
}

/* Return the value, to be freed with free(3), or NULL if it is none. *data* is written over. */
struct json *json_parse(char *data, size_t length)
{
	struct parser p = {.at = data, .end = data + length};

	if (value(&p, 0)) {
		blanks(&p);
		if (p.at == p.end)
			return p.nodes;
	}
	free(p.nodes);
	return NULL;
}

const struct json *json_next(const struct json *value)
{
	return value + value->nodes;
}

const struct json *json_get(const struct json *object, const char *key)
{
	const struct json *found = NULL;
	const struct json *at;

	if (!object || object->kind != JSON_OBJECT)
		return NULL;
	at = object + 1;
	for (uint32_t i = 0; i < object->entries; i++) {
		/* The last of several counts, as with Python. */
		if (at->kind == JSON_TEXT && !strcmp(at->text, key))
			found = at + 1;
		at = json_next(at + 1);
	}
	return found;
}

bool json_true(const struct json *object, const char *key)
{
	const struct json *found = json_get(object, key);

	return found && found->kind == JSON_TRUE;
}

bool json_integer(const struct json *object, const char *key, int64_t low, int64_t high,
		  int64_t *number)
{
	const struct json *found = json_get(object, key);

	if (!found || found->kind != JSON_INTEGER || found->integer < low || found->integer > high)
		return false;
	*number = found->integer;
	return true;
}

const char *json_text(const struct json *object, const char *key)
{
	const struct json *found = json_get(object, key);

	return found && found->kind == JSON_TEXT ? found->text : NULL;
}
