/* SPDX-License-Identifier: GPL-2.0 */
/* userfaultfd: of one's own mm, by one's own hand. */
#ifndef UFFD_H
#define UFFD_H

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline int uffd_open(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static inline bool uffd_register(int fd, const void *area, size_t size, uint64_t mode)
{
	struct uffdio_register reg = { .range = { (uintptr_t)area, size }, .mode = mode };

	return !ioctl(fd, UFFDIO_REGISTER, &reg);
}

/* How much was moved, or -errno if nothing was. */
static inline long uffd_move(int fd, void *to, void *from, size_t size)
{
	struct uffdio_move move = {
		.dst = (uintptr_t)to, .src = (uintptr_t)from, .len = size,
	};
	long moved = 0;

	while (ioctl(fd, UFFDIO_MOVE, &move)) {
		if (errno != EAGAIN)
			return moved ? moved : -errno;
		if (move.move > 0) {
			moved += move.move;
			move.dst += move.move;
			move.src += move.move;
			move.len -= move.move;
		}
		move.move = 0;
	}
	return moved + move.move;
}

#endif /* UFFD_H */
