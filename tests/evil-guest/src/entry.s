# PVH entry (Xen, docs/misc/pvh.pandoc): 32-bit protected mode without paging, EBX -> hvm_start_info.
# Turns on long mode over a one-to-one map of the first 4 GiB and calls the Rust code; a second processor comes in by a
# page below 1 MiB and takes the same way. AT&T syntax.

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18              # sizes of name and value, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_entry

    .text
    .code32
    .globl pvh_entry
pvh_entry:
    cli
    movl %ebx, start_info
    movl $boot_stack_end, %esp
    call to_long_mode
    ljmp $8, $first_processor

# Paging and long mode on; still in a 32-bit segment when it returns.
to_long_mode:
    lgdt gdt_pointer
    movl %cr4, %eax
    orl $0x20, %eax             # physical address extension
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      # EFER
    rdmsr
    orl $0x100, %eax            # long mode enable
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax       # paging, protection
    movl %eax, %cr0
    ret

    .code64
first_processor:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movq $boot_stack_end, %rsp
    lidt idt_pointer(%rip)
    movl start_info(%rip), %edi
    call rust_main
1:  hlt
    jmp 1b

other_processor:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movq $other_stack_end, %rsp
    lidt idt_pointer(%rip)
    call rust_other
1:  hlt
    jmp 1b

# Copied to 0x8000: a started processor begins there in real mode with CS = 0x800.
    .globl trampoline_start
    .globl trampoline_end
    .code16
trampoline_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl 0x8000 + trampoline_gdt - trampoline_start
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $24, $other_entry32
    .balign 4
trampoline_gdt:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

    .code32
other_entry32:
    movw $32, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $other_stack_end, %esp
    call to_long_mode
    ljmp $8, $other_processor

    .code64
# Exceptions push their number and whether the processor pushed an error code, then meet here: the Rust code gets the
# number and a pointer to the return address on the stack, which it may change.
    .globl stubs
    .balign 16
stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector != 8) && (vector < 10 || vector > 14) && (vector != 17) && (vector != 21)
    pushq $0
    .endif
    .byte 0x68                  # pushq $vector
    .long vector
    jmp common_stub
    .set vector, vector + 1
    .endr

# Stack: what is saved here (9 registers), vector, error code, RIP, CS, RFLAGS, RSP, SS.
common_stub:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    movq 72(%rsp), %rdi
    leaq 88(%rsp), %rsi
    cld
    call rust_trap
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

    .data
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 8: 64-bit code
    .quad 0x00cf93000000ffff    # 16: data
    .quad 0x00cf9b000000ffff    # 24: 32-bit code
    .quad 0x00cf93000000ffff    # 32: 32-bit data
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .balign 8
idt_pointer:
    .word 4095
    .quad idt
    .globl start_info
start_info:
    .quad 0

    .balign 4096
pml4:
    .quad pdpt + 3
    .zero 4088
pdpt:
    .quad directories + 3
    .quad directories + 0x1003
    .quad directories + 0x2003
    .quad directories + 0x3003
    .zero 4064
directories:
    .set page, 0
    .rept 2048
    .quad (page << 21) + 0x83
    .set page, page + 1
    .endr

    .bss
    .balign 4096
    .globl idt
idt:
    .zero 4096
boot_stack:
    .zero 65536
boot_stack_end:
other_stack:
    .zero 65536
other_stack_end:
