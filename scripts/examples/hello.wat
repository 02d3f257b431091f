;; Greets its first argument, or the world. WASI preview 1, as text.
;;
;;   ucp-submit --wasm scripts/examples/hello.wat -- Marburg
(module
  (import "wasi_snapshot_preview1" "args_sizes_get"
    (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 4)
  ;; 0: count of arguments, 4: their bytes, 8: bytes written, 16: a piece of output
  (data (i32.const 64) "hello, ")
  (data (i32.const 80) "world")
  (data (i32.const 96) "\n")

  (func $length (param $text i32) (result i32)
    (local $end i32)
    (local.set $end (local.get $text))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (i32.load8_u (local.get $end))))
        (local.set $end (i32.add (local.get $end) (i32.const 1)))
        (br $next)))
    (i32.sub (local.get $end) (local.get $text)))

  ;; A write may take a part only.
  (func $print (param $text i32) (param $length i32)
    (block $done
      (loop $rest
        (br_if $done (i32.eqz (local.get $length)))
        (i32.store (i32.const 16) (local.get $text))
        (i32.store (i32.const 20) (local.get $length))
        (if (call $fd_write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 8))
          (then (call $proc_exit (i32.const 74))))
        (local.set $text (i32.add (local.get $text) (i32.load (i32.const 8))))
        (local.set $length (i32.sub (local.get $length) (i32.load (i32.const 8))))
        (br $rest))))

  (func (export "_start")
    (local $name i32)
    (drop (call $args_sizes_get (i32.const 0) (i32.const 4)))
    ;; Pointers from 1024 on, texts from 65536 on; more than fits is not read.
    (local.set $name (i32.const 80))
    (if (i32.and
          (i32.gt_u (i32.load (i32.const 0)) (i32.const 1))
          (i32.and
            (i32.lt_u (i32.load (i32.const 0)) (i32.const 16000))
            (i32.lt_u (i32.load (i32.const 4)) (i32.const 190000))))
      (then
        (drop (call $args_get (i32.const 1024) (i32.const 65536)))
        (local.set $name (i32.load (i32.const 1028)))))
    (call $print (i32.const 64) (i32.const 7))
    (call $print (local.get $name) (call $length (local.get $name)))
    (call $print (i32.const 96) (i32.const 1))))
